from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from arrowquant_dist.errors import CorruptWeights, IncompleteDataset, StorageError, TargetConflict
from arrowquant_dist.format.parquet.part import PartWriter
from arrowquant_dist.storage.base import ObjectInfo, Store
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.target.commit import commit_path
from arrowquant_dist.target.index import write_index
from arrowquant_dist.target.layout import part_path
from arrowquant_dist.target.manifest import Manifest
from arrowquant_dist.target.receipt import Receipt
from arrowquant_dist.target.target import Target
from tests.format.test_part import make_row
from tests.storage.places import Place

FILES = {"config.json": b"{}", "report/report.json": b"[]", "report/layers.parquet": b"x"}


def plan(fingerprint: str = "xxh3_128:f") -> pa.Table:
    return pa.table({"layer_name": ["a", "b"]}).replace_schema_metadata(
        {"arrowquant.fingerprint": fingerprint}
    )


def started(place: Place, fingerprint: str = "xxh3_128:f") -> Target:
    target = Target.open(place.uri, place.storage)
    target.start(plan(fingerprint))
    return target


def work(target: Target, shard: int, attempt: str) -> Receipt:
    """A shard as a worker leaves it: its part written, nothing committed."""
    writer = PartWriter(target.store, part_path(shard, attempt), "none")
    row = make_row(f"layer-{shard}", 100)
    writer.add(row, source_nbytes=400, method="rtn", kept_reason=None, errors=None)
    info = writer.close()
    return Receipt(
        shard, attempt, info.path, info.nbytes, info.hash, info.records, {}, 1, "w", "n", 0.5, 3, 2, 1
    )


def publish(target: Target, config: str = "") -> Manifest:
    receipts = target.receipts()
    index = write_index((r.part, r.shard, row) for r in receipts.values() for row in r.rows)
    manifest = Manifest.of(
        receipts.values(),
        index=index,
        sidecars={"config.json": FILES["config.json"]},
        fingerprint=target.fingerprint,
        source={},
        config={"name": config},
        compression="none",
        aliases={},
    )
    return target.publish(manifest, index, FILES)


def finished(place: Place) -> Target:
    target = started(place)
    for shard in range(2):
        assert target.commit(work(target, shard, "a"))
    publish(target)
    return target


def test_opening_and_asking_has_no_side_effects(place: Place) -> None:
    target = Target.open(place.uri, place.storage)
    assert target.state() == "empty"
    assert target.planned() is None
    assert target.manifest() is None
    assert place.paths() == []


def test_a_run_goes_from_empty_to_finished(place: Place) -> None:
    target = started(place)
    assert target.state() == "started"
    receipts = {shard: work(target, shard, "a") for shard in range(2)}
    assert target.receipts() == {}
    for receipt in receipts.values():
        assert target.commit(receipt)
    assert Target.open(place.uri, place.storage).receipts() == receipts
    manifest = publish(target)
    assert target.state() == "finished"
    assert Target.open(place.uri, place.storage).manifest() == manifest
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
    assert {entry.part for entry in manifest.read_index(target.store)} == {r.part for r in receipts.values()}


def test_a_commit_that_lands_while_receipts_are_read_stays(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, other = started(place), Target.open(place.uri, place.storage)
    listed = target.store.list

    def list_and_then_commit(prefix: str = "") -> list[ObjectInfo]:
        found = listed(prefix)
        monkeypatch.undo()
        assert other.commit(work(other, 0, "b"))
        return found

    monkeypatch.setattr(target.store, "list", list_and_then_commit)
    target.receipts()
    assert list(other.receipts()) == [0]


def test_weights_is_a_plain_hive_dataset(tmp_path: Path) -> None:
    target = Target.open(str(tmp_path))
    target.start(plan())
    for shard in range(3):
        target.commit(work(target, shard, "a"))
    table = ds.dataset(tmp_path / "weights", partitioning="hive").to_table(columns=["layer_name", "shard"])
    assert sorted(table["layer_name"].to_pylist()) == ["layer-0", "layer-1", "layer-2"]
    assert sorted(table["shard"].to_pylist()) == [0, 1, 2]


def test_the_first_plan_counts_and_later_starts_get_it(place: Place) -> None:
    started(place, "xxh3_128:1")
    late = Target.open(place.uri, place.storage)
    got = late.start(plan("xxh3_128:2"))
    assert got.equals(plan())
    assert late.fingerprint == "xxh3_128:1"
    planned = Target.open(place.uri, place.storage).planned()
    assert planned is not None
    assert planned.equals(got, check_metadata=True)


def test_a_fingerprint_may_be_json(place: Place) -> None:
    assert started(place, '"xxh3_128:f"').fingerprint == "xxh3_128:f"


def test_files_of_others_are_never_built_into(place: Place) -> None:
    for name in ("a.txt", "model.safetensors", "weights/shard=00000/part-a.parquet", "z"):
        place.put(name, b"1")
    target = Target.open(place.uri, place.storage)
    assert target.state() == "foreign"
    with pytest.raises(TargetConflict, match=r"a\.txt, model\.safetensors, .* …"):
        target.start(plan())
    with pytest.raises(TargetConflict, match="nothing was deleted"):
        target.clear()
    assert len(place.paths()) == 4


def test_somebody_elses_manifest_makes_a_folder_foreign(place: Place) -> None:
    place.put("manifest.json", b'{"format": "other"}')
    assert Target.open(place.uri, place.storage).state() == "foreign"


def test_a_leftover_temporary_file_is_not_foreign(place: Place) -> None:
    place.put("run/.plan.arrow.tmp-0123", b"")
    assert Target.open(place.uri, place.storage).state() == "empty"


def test_a_damaged_plan_is_named(place: Place) -> None:
    place.put("run/plan.arrow", b"ARROW1 but not really")
    with pytest.raises(CorruptWeights, match="--overwrite"):
        Target.open(place.uri, place.storage).planned()


def test_a_target_without_a_plan_has_no_fingerprint(place: Place) -> None:
    with pytest.raises(IncompleteDataset, match="no run was started"):
        Target.open(place.uri, place.storage).receipts()


def test_the_first_attempt_wins_and_the_losers_part_goes(place: Place) -> None:
    target = started(place)
    first, second = work(target, 0, "a"), work(target, 0, "b")
    assert target.commit(first)
    assert not Target.open(place.uri, place.storage).commit(second)
    assert target.receipts() == {0: first}
    assert not any("part-b" in path for path in place.paths())


def test_a_commit_repeated_after_an_unknown_outcome_is_ones_own(place: Place) -> None:
    target = started(place)
    receipt = work(target, 0, "a")
    assert target.commit(receipt)
    assert target.commit(receipt)
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


def _losing(target: Target, *, landed: bool) -> Target:
    target.store = _LosesAnswers(target.store, landed=landed)  # type: ignore[assignment]
    return target


def test_a_commit_whose_answer_got_lost_counts(place: Place) -> None:
    target = _losing(started(place), landed=True)
    receipt = work(target, 0, "a")
    assert target.commit(receipt)
    assert Target.open(place.uri, place.storage).receipts() == {0: receipt}


def test_a_commit_of_unknown_outcome_keeps_its_part(place: Place) -> None:
    target = _losing(started(place), landed=False)
    receipt = work(target, 0, "a")
    with pytest.raises(StorageError, match="got lost"):
        target.commit(receipt)
    assert receipt.part in place.paths()


def test_a_manifest_whose_answer_got_lost_counts(place: Place) -> None:
    target = started(place)
    target.commit(work(target, 0, "a"))
    manifest = publish(_losing(target, landed=True))
    assert Target.open(place.uri, place.storage).manifest() == manifest


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
    target = started(place)
    receipts = [work(target, shard, "a") for shard in range(2)]
    for receipt in receipts:
        target.commit(receipt)
    damage(place, receipts[0])
    assert target.receipts() == {1: receipts[1]}
    again = work(target, 0, "b")
    assert target.commit(again)
    assert target.receipts() == {0: again, 1: receipts[1]}


def test_a_zombie_of_an_overwritten_run_cannot_slip_its_part_in(place: Place) -> None:
    zombie = started(place, "xxh3_128:old")
    stale = work(zombie, 0, "zombie")
    current = Target.open(place.uri, place.storage)
    current.clear()
    current.start(plan("xxh3_128:new"))
    stale = work(zombie, 0, "zombie")
    zombie.commit(stale)
    assert current.receipts() == {}
    zombie.commit(stale)
    receipt = work(current, 0, "a")
    assert current.commit(receipt)
    assert current.receipts() == {0: receipt}
    assert current.receipt(0) == receipt
    assert not zombie.commit(work(zombie, 0, "zombie-2"))
    assert current.receipts() == {0: receipt}


def test_a_zombie_that_comes_second_is_told_so_and_leaves_no_part(place: Place) -> None:
    zombie = started(place, "xxh3_128:old")
    current = Target.open(place.uri, place.storage)
    current.clear()
    current.start(plan("xxh3_128:new"))
    assert current.commit(work(current, 0, "a"))
    with pytest.raises(TargetConflict, match="overwritten"):
        zombie.commit(work(zombie, 0, "zombie"))
    assert not any("zombie" in path for path in place.paths())


def test_a_dataset_with_a_missing_part_is_not_published(place: Place) -> None:
    target = started(place)
    receipts = [work(target, shard, "a") for shard in range(2)]
    for receipt in receipts:
        target.commit(receipt)
    index = write_index([])
    manifest = Manifest.of(
        [receipts[0], replace(receipts[1], nbytes=1)],
        index=index,
        sidecars={},
        fingerprint="xxh3_128:f",
        source={},
        config={},
        compression="none",
        aliases={},
    )
    with pytest.raises(IncompleteDataset, match="shard=00001/part-a"):
        target.publish(manifest, index, FILES)
    assert target.state() == "started"
    assert "index.parquet" not in place.paths()


def test_of_two_drivers_the_second_returns_the_firsts_manifest(place: Place) -> None:
    target = started(place)
    for shard in range(2):
        target.commit(work(target, shard, "a"))
    first = publish(target, "first")
    assert publish(Target.open(place.uri, place.storage), "second") == first
    assert first.config == {"name": "first"}


def test_racing_drivers_end_in_one_dataset(place: Place) -> None:
    target = started(place)
    start = threading.Barrier(4)
    got: list[Manifest] = []

    def drive(i: int) -> None:
        own = Target.open(place.uri, place.storage)
        own.start(plan())
        start.wait()
        for shard in range(3):
            own.commit(work(own, shard, f"driver-{i}"))
        start.wait()
        got.append(publish(own, f"driver {i}"))

    threads = [threading.Thread(target=drive, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 4
    assert all(manifest == got[0] for manifest in got)
    parts = [path for path in place.paths() if path.startswith("weights/")]
    assert parts == [part.path for part in got[0].parts]
    assert len(got[0].read_index(target.store)) == 3


def test_publishing_removes_what_lost_and_what_was_temporary(place: Place) -> None:
    target = started(place)
    for shard in range(2):
        target.commit(work(target, shard, "a"))
    work(target, 1, "killed")
    place.put("weights/shard=00001/part-cut.parquet", b"PAR1")
    place.put("run/commits/.00001.json.tmp-ab", b"{")
    publish(target)
    assert not any(word in path for path in place.paths() for word in ("killed", "cut", "tmp"))
    late = work(target, 0, "zombie")
    assert target.sweep() == [late.part]


def test_clear_removes_what_is_ours_alone_and_a_new_run_may_follow(place: Place) -> None:
    target = finished(place)
    for path in ("notes.txt", "weights/readme", "report/mine.md", "run/log"):
        place.put(path, b"mine")
    target.clear()
    assert place.paths() == ["notes.txt", "report/mine.md", "run/log", "weights/readme"]
    assert target.start(plan("xxh3_128:new")).equals(plan("xxh3_128:new"))
    assert target.fingerprint == "xxh3_128:new"
    assert Target.open(place.uri, place.storage).state() == "started"


def test_a_clear_that_was_interrupted_can_be_repeated(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    target = finished(place)
    delete = type(target.store).delete
    calls: list[list[str]] = []

    def killed_after_the_manifest(store: Store, paths: list[str]) -> None:
        calls.append(list(paths))
        if len(calls) > 1:
            raise KeyboardInterrupt
        delete(store, paths)

    with monkeypatch.context() as patch:
        patch.setattr(type(target.store), "delete", killed_after_the_manifest)
        with pytest.raises(KeyboardInterrupt):
            target.clear()
    assert calls[0] == ["manifest.json"]
    again = Target.open(place.uri, place.storage)
    assert again.state() == "started"
    again.clear()
    assert again.store.list("weights") == []
    assert again.store.list("run") == []


def test_clearing_an_empty_target_does_nothing(place: Place) -> None:
    Target.open(place.uri, place.storage).clear()
    assert place.paths() == []


def test_a_damaged_manifest_beside_a_plan_can_be_overwritten(place: Place) -> None:
    finished(place)
    place.put("manifest.json", b'{"format": "arrowq')
    target = Target.open(place.uri, place.storage)
    assert target.state() == "started"
    target.clear()
    assert [path for path in place.paths() if path != "config.json"] == []
