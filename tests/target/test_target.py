from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from arrowquant_dist.errors import CorruptWeights, IncompleteDataset, StorageError, TargetConflict
from arrowquant_dist.storage.base import ObjectInfo, Store
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.target.clear import clear, sweep
from arrowquant_dist.target.commit import commit_path
from arrowquant_dist.target.index import write_index
from arrowquant_dist.target.plan_file import SIDECARS_KEY, plan_file
from arrowquant_dist.target.publish import Published, prepare
from arrowquant_dist.target.receipt import Receipt
from arrowquant_dist.target.target import Files, Target
from tests.storage.places import LocalPlace, Place
from tests.target.drivers import (
    SIDECARS,
    Driver,
    at,
    begin,
    cleared,
    committed,
    finished,
    make_manifest,
    overwrite,
    plan,
    state,
)

_SLOW = pytest.mark.slow


def test_opening_and_asking_has_no_side_effects(place: Place) -> None:
    target = at(place)
    assert target.state(target.look()) == "empty"
    assert target.planned() is None
    assert target.manifest() is None
    assert place.paths() == []


def test_a_run_goes_from_empty_to_finished(place: Place) -> None:
    driver = begin(place)
    assert state(place) == "started"
    receipts = {shard: driver.work(shard, "a") for shard in range(2)}
    assert driver.receipts() == {}
    for receipt in receipts.values():
        assert driver.commit(receipt)
    assert begin(place).receipts() == receipts
    published = driver.publish()
    assert published.is_ours
    assert state(place) == "finished"
    manifest = at(place).manifest()
    assert manifest == published.manifest
    assert place.paths() == [
        "config.json",
        "index.parquet",
        "manifest.json",
        "report/layers.parquet",
        "report/report.json",
        "run/commits/00000.json",
        "run/commits/00001.json",
        "run/plan.arrow",
        "weights/shard=00000/part-a.parquet",
        "weights/shard=00001/part-a.parquet",
    ]
    assert {entry.part for entry in manifest.read_index(driver.store)} == {r.part for r in receipts.values()}


def test_a_commit_that_lands_while_receipts_are_read_stays(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, other = begin(place), begin(place)
    listed = driver.store.list

    def list_and_then_commit(prefix: str = "") -> list[ObjectInfo]:
        found = listed(prefix)
        monkeypatch.undo()
        assert other.commit(other.work(0, "b"))
        return found

    monkeypatch.setattr(driver.store, "list", list_and_then_commit)
    driver.receipts()
    assert list(other.receipts()) == [0]


def test_weights_is_a_plain_hive_dataset(tmp_path: Path) -> None:
    driver = begin(LocalPlace(str(tmp_path), tmp_path))
    for shard in range(3):
        driver.commit(driver.work(shard, "a"))
    table = ds.dataset(tmp_path / "weights", partitioning="hive").to_table(columns=["layer_name", "shard"])
    assert sorted(table["layer_name"].to_pylist()) == ["layer-0", "layer-1", "layer-2"]
    assert sorted(table["shard"].to_pylist()) == [0, 1, 2]


def test_the_first_plan_counts_and_later_starts_get_it(place: Place) -> None:
    begin(place, "xxh3_128:1")
    late = at(place)
    got = late.start(plan("xxh3_128:2"), late.look())
    assert got.table.equals(plan())
    assert got.identity.fingerprint == "xxh3_128:1"
    planned = at(place).planned()
    assert planned is not None
    assert planned.table.equals(got.table, check_metadata=True)
    assert planned.identity == got.identity


def test_files_of_others_are_never_built_into(place: Place) -> None:
    for name in ("a.txt", "model.safetensors", "weights/shard=00000/part-a.parquet", "z"):
        place.put(name, b"1")
    assert state(place) == "foreign"
    with pytest.raises(TargetConflict, match=r"a\.txt, model\.safetensors, .*, z\)"):
        begin(place)
    with pytest.raises(TargetConflict, match="nothing was deleted"):
        cleared(at(place))
    assert len(place.paths()) == 4


def test_somebody_elses_manifest_makes_a_folder_foreign(place: Place) -> None:
    place.put("manifest.json", b'{"format": "other"}')
    assert state(place) == "foreign"


def test_a_leftover_temporary_file_is_not_foreign(place: Place) -> None:
    place.put("run/.plan.arrow.tmp-0123", b"")
    assert state(place) == "empty"


def test_a_damaged_plan_is_named(place: Place) -> None:
    place.put("run/plan.arrow", b"ARROW1 but not really")
    with pytest.raises(CorruptWeights, match="--overwrite"):
        at(place).planned()


@pytest.mark.parametrize("sidecars", [b"[1", b"[1]", b"{}", b"7"])
def test_a_plan_whose_list_of_sidecars_is_damaged_can_be_overwritten(place: Place, sidecars: bytes) -> None:
    table = plan()
    damaged = table.replace_schema_metadata({**table.schema.metadata, SIDECARS_KEY: sidecars})
    place.put("run/plan.arrow", plan_file(damaged))
    with pytest.raises(CorruptWeights, match="--overwrite"):
        at(place).planned()
    cleared(at(place))
    assert place.paths() == []


def test_a_target_without_a_plan_holds_nobodys_run(place: Place) -> None:
    with pytest.raises(IncompleteDataset, match="no run was started"):
        at(place).current()


def test_the_first_attempt_wins_and_the_losers_part_goes(place: Place) -> None:
    driver = begin(place)
    first, second = driver.work(0, "a"), driver.work(0, "b")
    assert driver.commit(first)
    assert not begin(place).commit(second)
    assert driver.receipts() == {0: first}
    assert not any("part-b" in path for path in place.paths())


def test_a_commit_repeated_after_an_unknown_outcome_is_ones_own(place: Place) -> None:
    driver = begin(place)
    receipt = driver.work(0, "a")
    assert driver.commit(receipt)
    assert driver.commit(receipt)
    assert receipt.part in place.paths()


class _LosesAnswers:
    """A store that fails after `landed` says whether it has created the object."""

    def __init__(self, store: Store, *, landed: bool) -> None:
        self._store, self._landed = store, landed

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def create(self, path: str, data: bytes) -> bool:
        if self._landed:
            self._store.create(path, data)
        raise StorageError("the answer got lost")


def _losing(driver: Driver, *, landed: bool) -> Driver:
    driver.target.store = _LosesAnswers(driver.store, landed=landed)  # type: ignore[assignment]
    return driver


def test_a_commit_whose_answer_got_lost_counts(place: Place) -> None:
    driver = _losing(begin(place), landed=True)
    receipt = driver.work(0, "a")
    assert driver.commit(receipt)
    assert begin(place).receipts() == {0: receipt}


def test_a_commit_of_unknown_outcome_keeps_its_part(place: Place) -> None:
    driver = _losing(begin(place), landed=False)
    receipt = driver.work(0, "a")
    with pytest.raises(StorageError, match="got lost"):
        driver.commit(receipt)
    assert receipt.part in place.paths()


def test_a_manifest_whose_answer_got_lost_counts(place: Place) -> None:
    driver = begin(place)
    driver.commit(driver.work(0, "a"))
    published = _losing(driver, landed=True).publish()
    assert published.is_ours
    assert at(place).manifest() == published.manifest


def _drop_part(place: Place, receipt: Receipt) -> None:
    open_store(place.uri, place.storage).delete([receipt.part])


def _cut_part(place: Place, receipt: Receipt) -> None:
    place.put(receipt.part, place.get(receipt.part)[:-1])


def _cut_commit(place: Place, receipt: Receipt) -> None:
    place.put(commit_path(receipt.shard), place.get(commit_path(receipt.shard))[:-30])


def _empty_commit(place: Place, receipt: Receipt) -> None:
    place.put(commit_path(receipt.shard), b"")


def _swap_commit(place: Place, receipt: Receipt) -> None:
    place.put(commit_path(receipt.shard), place.get(commit_path(receipt.shard + 1)))


@pytest.mark.parametrize("damage", [_drop_part, _cut_part, _cut_commit, _empty_commit, _swap_commit])
def test_a_commit_that_does_not_hold_is_dropped_and_the_shard_done_again(
    place: Place, damage: Callable[[Place, Receipt], None]
) -> None:
    driver = begin(place)
    receipts = [driver.work(shard, "a") for shard in range(2)]
    for receipt in receipts:
        driver.commit(receipt)
    damage(place, receipts[0])
    assert driver.receipts() == {1: receipts[1]}
    again = driver.work(0, "b")
    assert driver.commit(again)
    assert driver.receipts() == {0: again, 1: receipts[1]}


def test_a_zombie_of_an_overwritten_run_cannot_slip_its_part_in(place: Place) -> None:
    zombie = begin(place, "xxh3_128:old")
    stale = zombie.work(0, "zombie")
    current = overwrite(place, "xxh3_128:new")
    stale = zombie.work(0, "zombie")
    zombie.commit(stale)
    assert current.receipts() == {}
    zombie.commit(stale)
    receipt = current.work(0, "a")
    assert current.commit(receipt)
    assert current.receipts() == {0: receipt}
    assert current.shards.receipt(0) == receipt
    assert not zombie.commit(zombie.work(0, "zombie-2"))
    assert current.receipts() == {0: receipt}


def test_a_zombie_that_comes_second_is_told_so_and_leaves_no_part(place: Place) -> None:
    zombie = begin(place, "xxh3_128:old")
    current = overwrite(place, "xxh3_128:new")
    assert current.commit(current.work(0, "a"))
    with pytest.raises(TargetConflict, match="overwritten"):
        zombie.commit(zombie.work(0, "zombie"))
    assert not any("zombie" in path for path in place.paths())


def test_a_dataset_with_a_missing_part_is_not_published(place: Place) -> None:
    driver = committed(place)
    receipts = driver.receipts()
    index = write_index([])
    manifest = make_manifest([receipts[0], replace(receipts[1], nbytes=1)], index, "xxh3_128:f")
    with pytest.raises(IncompleteDataset, match="shard=00001/part-a"):
        prepare(driver.target, driver.run, manifest, index, SIDECARS, driver.target.look())
    assert state(place) == "started"
    assert "index.parquet" not in place.paths()


def test_of_two_drivers_the_second_returns_the_firsts_manifest(place: Place) -> None:
    driver = committed(place)
    first = driver.publish("first")
    second = begin(place).publish("second")
    assert (first.is_ours, second.is_ours) == (True, False)
    assert second.manifest == first.manifest
    assert first.manifest.config == {"name": "first"}


def test_racing_drivers_end_in_one_dataset(place: Place) -> None:
    begin(place)
    start = threading.Barrier(4)
    got: list[Published] = []

    def drive(i: int) -> None:
        own = begin(place)
        start.wait()
        for shard in range(3):
            own.commit(own.work(shard, f"driver-{i}"))
        start.wait()
        got.append(own.publish(f"driver {i}"))

    threads = [threading.Thread(target=drive, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 4
    manifest = got[0].manifest
    assert all(published.manifest == manifest for published in got)
    assert [published.is_ours for published in got].count(True) == 1
    parts = [path for path in place.paths() if path.startswith("weights/")]
    assert parts == [part.path for part in manifest.parts]
    assert len(manifest.read_index(at(place).store)) == 3


def test_publishing_removes_what_lost_and_what_was_temporary(place: Place) -> None:
    driver = committed(place)
    driver.work(1, "killed")
    place.put("weights/shard=00001/part-cut.parquet", b"PAR1")
    place.put("run/commits/.00001.json.tmp-ab", b"{")
    manifest = driver.publish().manifest
    assert not any(word in path for path in place.paths() for word in ("killed", "cut", "tmp"))
    late = driver.work(0, "zombie")
    assert sweep(driver.target, manifest, driver.target.look()) == [late.part]


def test_clear_removes_what_is_ours_alone_and_a_new_run_may_follow(place: Place) -> None:
    target = finished(place).target
    for path in ("notes.txt", "weights/readme", "report/mine.md", "run/log"):
        place.put(path, b"mine")
    left = cleared(target)
    stays = ["notes.txt", "report/mine.md", "run/log", "weights/readme"]
    assert place.paths() == sorted(left.sizes) == sorted([*stays, *left.notes])
    planned = target.start(plan("xxh3_128:new"), left)
    assert planned.table.equals(plan("xxh3_128:new"))
    assert planned.identity.fingerprint == "xxh3_128:new"
    assert state(place) == "started"
    assert place.paths() == sorted([*stays, "run/plan.arrow"])


class Killed(BaseException):
    """What no handler is prepared for."""


class _Dies:
    """A store that strikes at its n-th change, before or after the change."""

    def __init__(self, store: Store, at: int, *, landed: bool) -> None:
        self._store, self._at, self._landed = store, at, landed
        self.changes: list[str] = []

    def __getattr__(self, name: str) -> Any:
        own = getattr(self._store, name)
        if name not in ("create", "write", "delete", "delete_unchanged"):
            return own

        def dying(paths: Any, *data: bytes) -> Any:
            if not paths:
                return own(paths, *data)
            self.changes.append(f"{name} {paths}")
            strikes = len(self.changes) > self._at
            if strikes and not self._landed:
                raise Killed
            result = own(paths, *data)
            if strikes:
                raise Killed
            return result

        return dying


_DEATHS = {  # of the clouds each with one of the two sources; the rest is slow
    *(
        ("local", "other-source"),
        ("local", "same-source"),
        ("memory", "other-source"),
        ("memory", "same-source"),
    ),
    *(("s3", "other-source"), ("gcs", "same-source")),
}


@pytest.mark.parametrize(
    ("place", "sidecars"),
    [
        pytest.param(
            place, sidecars, id=f"{place}-{source}", marks=[] if (place, source) in _DEATHS else [_SLOW]
        )
        for place in ("local", "file", "memory", "s3", "gcs", "azurite")
        for source, sidecars in (("other-source", {}), ("same-source", SIDECARS))
    ],
    indirect=["place"],
)
def test_a_clear_that_died_at_any_change_can_be_repeated(place: Place, sidecars: Files) -> None:
    """A death before a change is one after the change before it. By a run that copies the same files as the cleared
    one, and by one that copies none of these, one after the other; what is not ours stays."""
    place.put("notes.txt", b"mine")
    at_change = 0
    while True:
        target = finished_beside_others(place)
        dying = _Dies(target.store, at_change, landed=True)
        target.store = dying  # type: ignore[assignment]
        try:
            clear(target, target.look(), sidecars)
        except Killed:
            pass
        else:
            break
        assert "manifest.json" in dying.changes[0]
        assert "manifest.json" not in place.paths()
        again, theirs = at(place), SIDECARS if at_change % 2 else {}
        planned = again.start(plan_that_copies(theirs), clear(again, again.look(), theirs))
        assert planned.identity == again.current()
        assert {*place.paths()} - {*theirs} == {"notes.txt", "run/plan.arrow"}, dying.changes[-1]
        left = cleared(at(place))
        assert place.paths() == sorted(["notes.txt", *left.notes])
        at_change += 1
    assert at_change >= 5


def plan_that_copies(sidecars: Files) -> pa.Table:
    table = plan()
    copied = json.dumps([*sidecars]).encode()
    return table.replace_schema_metadata({**table.schema.metadata, SIDECARS_KEY: copied})


def finished_beside_others(place: Place) -> Target:
    target = at(place)
    left = target.look().after_clear()
    driver = Driver(target, target.start(plan_that_copies(SIDECARS), left).identity)
    for shard in range(2):
        assert driver.commit(driver.work(shard, "a"))
    assert driver.publish().is_ours
    return target


def test_clearing_an_empty_target_does_nothing(place: Place) -> None:
    cleared(at(place))
    assert place.paths() == []


def test_a_damaged_manifest_beside_a_plan_can_be_overwritten(place: Place) -> None:
    finished(place)
    place.put("manifest.json", b'{"format": "arrowq')
    assert state(place) == "started"
    left = cleared(at(place))
    assert [path for path in place.paths() if path not in left.notes] == ["config.json"]
