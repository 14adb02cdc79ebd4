"""Several drivers and zombies at one target, in the orders that matter, on every kind of storage."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from arrowquant_dist.errors import IncompleteDataset, TargetConflict
from arrowquant_dist.storage.base import Store
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.uris import is_local
from arrowquant_dist.target.clear import sweep
from arrowquant_dist.target.commit import commit_path
from arrowquant_dist.target.index import write_index
from arrowquant_dist.target.manifest import Manifest, StoredFile
from arrowquant_dist.target.plan_file import SIDECARS_KEY
from arrowquant_dist.target.publish import Published
from arrowquant_dist.target.shards import CommittedShards
from arrowquant_dist.target.target import Target
from tests.storage.places import Place
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
)


class Watched:
    """A store that calls `before` or `after` around each of its methods that change something."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.before: Callable[[str, Any], None] = lambda *_: None
        self.after: Callable[[str, Any], None] = lambda *_: None

    def __getattr__(self, name: str) -> Any:
        own = getattr(self._store, name)
        if name not in {"create", "write", "delete", "delete_unchanged"}:
            return own

        def watched(paths: Any, *data: bytes) -> Any:
            self.before(name, paths)
            result = own(paths, *data)
            self.after(name, paths)
            return result

        return watched


def watched(driver: Driver) -> Watched:
    watcher = Watched(driver.store)
    driver.target.store = watcher  # type: ignore[assignment]
    return watcher


def once(wanted: tuple[str, Any], action: Callable[[], object]) -> Callable[[str, Any], None]:
    """Calls `action` at the first call of a method with such paths."""
    done: list[bool] = []

    def act(name: str, paths: Any) -> None:
        if (name, paths) == wanted and not done:
            done.append(True)
            action()

    return act


def is_sound(place: Place) -> bool:
    """Whether the manifest's index and parts are those that are there."""
    store = open_store(place.uri, place.storage)
    manifest = Manifest.read(store)
    manifest.read_index(store)
    parts = [path for path in place.paths() if path.startswith("weights/")]
    return parts == [part.path for part in manifest.parts]


def test_a_driver_that_looked_before_another_published_leaves_that_ones_index_alone(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their packages differ, and so the bytes of the same rows."""
    first, late = committed(place), begin(place)
    watched(late).before = once(("create", "index.parquet"), lambda: first.publish("first"))
    monkeypatch.setattr("tests.target.drivers.write_index", _index_of_another_version)
    published = late.publish("late")
    assert not published.is_ours
    assert published.manifest.config == {"name": "first"}
    assert is_sound(place)


_versions = iter(range(1_000))


def _index_of_another_version(rows: Any) -> bytes:
    """The same rows in other bytes each time."""
    import io

    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(write_index(rows)))
    out = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"written_by": str(next(_versions))}), out)
    return out.getvalue()


def test_indexes_of_two_versions_have_the_same_rows_and_other_bytes(place: Place) -> None:
    receipts = committed(place).receipts().values()
    indexes = [
        _index_of_another_version((r.part, r.shard, row) for r in receipts for row in r.rows) for _ in "ab"
    ]
    assert indexes[0] != indexes[1]


def test_drivers_of_many_versions_that_publish_at_once_end_in_one_dataset(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.target.drivers.write_index", _index_of_another_version)
    committed(place)
    drivers = [begin(place) for _ in range(4)]
    start = threading.Barrier(len(drivers))
    got: list[Published] = []

    def drive(i: int) -> None:
        start.wait()
        got.append(drivers[i].publish(f"driver {i}"))

    threads = [threading.Thread(target=drive, args=(i,)) for i in range(len(drivers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == len(drivers)
    assert all(published.manifest == got[0].manifest for published in got)
    assert [published.is_ours for published in got].count(True) == 1
    assert is_sound(place)


def test_an_index_of_other_rows_is_a_leftover_and_gives_way(place: Place) -> None:
    driver = committed(place)
    place.put("index.parquet", write_index([]))
    driver.publish()
    assert is_sound(place)


def test_an_index_that_is_passed_over_stays_for_its_driver_to_publish_first(place: Place) -> None:
    driver, other = committed(place), begin(place)
    receipts = other.receipts()
    rows = [(r.part, r.shard, row) for r in receipts.values() for row in r.rows]
    theirs = write_index(reversed(rows))
    place.put("index.parquet", theirs)
    manifest = make_manifest(list(receipts.values()), theirs, other.run.fingerprint, "other")
    published = once(
        ("create", "config.json"), lambda: other.store.create("manifest.json", manifest.to_bytes())
    )
    watched(driver).before = published
    outcome = driver.publish()
    assert not outcome.is_ours
    assert outcome.manifest.config == {"name": "other"}
    assert place.get("index.parquet") == theirs
    assert manifest.index == StoredFile.of("index.parquet", theirs)


def test_a_driver_whose_run_is_overwritten_while_it_publishes_takes_its_manifest_back(place: Place) -> None:
    """Even by an equal plan: its parts are gone."""
    driver, others = committed(place), []
    fingerprint = driver.run.fingerprint
    watched(driver).before = once(
        ("create", "manifest.json"), lambda: others.append(overwrite(place, fingerprint))
    )
    with pytest.raises(TargetConflict, match="overwritten"):
        driver.publish()
    assert "manifest.json" not in place.paths()
    [other] = others
    for shard in range(2):
        assert other.commit(other.work(shard, "b"))
    other.publish()
    assert is_sound(place)


def test_a_manifest_that_comes_while_the_target_is_cleared_goes_too(place: Place) -> None:
    """Its driver sees the old plan still, so it is the clearing one that has to take it away."""
    driver, other = committed(place), begin(place)
    watched(other).before = once(("delete", ["run/plan.arrow"]), lambda: publish_blindly(driver))
    cleared(other.target)
    assert place.paths() == []


def publish_blindly(driver: Driver) -> None:
    """As a driver that had looked at everything a moment ago."""
    driver.store.create("manifest.json", b'{"format": "arrowquant"}')


def test_an_overwritten_run_cannot_publish_what_it_committed_later(place: Place) -> None:
    old = begin(place)
    new = overwrite(place, "xxh3_128:new")
    for shard in range(2):
        assert old.commit(old.work(shard, "zombie"))
    with pytest.raises(TargetConflict, match="overwritten"):
        old.publish()
    assert not {"manifest.json", "index.parquet"} & set(place.paths())
    for shard in range(2):
        assert new.commit(new.work(shard, "a"))
    new.publish()
    assert is_sound(place)


def test_a_late_commit_of_a_run_with_an_equal_plan_is_not_the_new_runs(place: Place) -> None:
    """Its part would be the right one; but the old run's driver, if it sleeps, takes it for one that lost."""
    old = begin(place)
    new = overwrite(place, old.run.fingerprint)
    assert old.commit(old.work(0, "zombie"))
    assert new.receipts() == {}
    assert new.shards.receipt(0) is None
    assert new.commit(new.work(0, "a"))
    assert [receipt.attempt for receipt in new.receipts().values()] == ["a"]
    assert new.commit(new.work(1, "b"))
    with pytest.raises(TargetConflict, match="overwritten"):
        old.commit(old.work(1, "zombie"))
    new.publish()
    assert is_sound(place)


def test_a_commit_of_a_release_that_knew_no_runs_counts_by_its_plan(place: Place) -> None:
    driver = begin(place)
    receipt = driver.work(0, "a")
    assert CommittedShards(driver.target, driver.run.fingerprint).commit(receipt)
    assert b'"run"' not in place.get(commit_path(0)).partition(b'"receipt"')[0]
    assert driver.receipts() == {0: receipt}


def test_uploads_of_the_run_that_overwrote_ones_own_are_not_given_up(
    place: Place, request: pytest.FixtureRequest
) -> None:
    if request.node.callspec.params["place"] != "s3":
        pytest.skip("nothing else has uploads that were begun")
    driver, begun = committed(place), []

    def begin_another() -> None:
        other = overwrite(place, driver.run.fingerprint)
        writer = other.store.open_writer("weights/shard=00000/part-0123456789abcdef.parquet")
        writer.write(bytes(48 << 20))
        begun.append(writer)

    watched(driver).after = once(("create", "manifest.json"), begin_another)
    with pytest.raises(TargetConflict, match="overwritten"):
        driver.publish()
    begun[0].close()
    assert "weights/shard=00000/part-0123456789abcdef.parquet" in place.paths()


def test_two_workers_that_find_the_same_stale_commit_end_with_one_that_counts(place: Place) -> None:
    driver, other = committed(place), begin(place)
    driver.store.delete([driver.work(0, "a").part])
    mine, theirs = driver.work(0, "mine"), other.work(0, "theirs")
    # Between this one's look at the stale commit and what it does about it, the other one is done.
    watched(driver).after = once(("create", commit_path(0)), lambda: other.commit(theirs))
    assert not driver.commit(mine)
    assert driver.receipts()[0] == other.receipts()[0] == theirs == driver.shards.receipt(0)
    assert mine.part not in place.paths()
    driver.publish()
    assert is_sound(place)


def test_looking_for_receipts_deletes_nothing(place: Place) -> None:
    driver = committed(place)
    place.put(commit_path(0), b"damaged")
    before = place.paths()
    assert list(driver.receipts()) == [1]
    assert place.paths() == before


def test_a_zombie_that_commits_after_all_is_published_leaves_nothing(place: Place) -> None:
    finished(place)
    zombie = begin(place)
    before = place.paths()
    assert not zombie.commit(zombie.work(0, "zombie"))
    assert place.paths() == before
    assert is_sound(place)


def test_what_a_killed_zombie_left_goes_with_the_next_look(place: Place) -> None:
    finished(place).work(1, "killed")
    assert not is_sound(place)
    begin(place).publish()
    assert is_sound(place)


def test_nothing_is_swept_where_the_dataset_has_lost_a_part(place: Place) -> None:
    """What lies beside may be all that is left of it."""
    driver = finished(place)
    spare = driver.work(0, "spare")
    driver.store.delete(["weights/shard=00000/part-a.parquet"])
    with pytest.raises(IncompleteDataset, match=r"shard=00000/part-a\.parquet.*--repair"):
        sweep(driver.target, Manifest.read(driver.store), driver.target.look())
    assert spare.part in place.paths()


def test_a_sidecar_that_somebody_else_put_there_is_refused_and_kept(place: Place) -> None:
    driver = committed(place)
    place.put("config.json", b"mine")
    with pytest.raises(TargetConflict, match="differs from the source's"):
        driver.target.refuse_other_sidecars(SIDECARS, driver.target.look())
    with pytest.raises(TargetConflict, match=r"config\.json: this file differs from the source's"):
        driver.publish()
    assert place.get("config.json") == b"mine"
    assert "manifest.json" not in place.paths()


def test_overwriting_a_run_that_was_killed_while_it_published_leaves_none_of_its_sidecars(
    place: Place,
) -> None:
    target = at(place)
    table = plan()
    metadata = {**table.schema.metadata, SIDECARS_KEY: b'["config.json"]'}
    target.start(table.replace_schema_metadata(metadata), target.look())
    place.put("config.json", b"{}")
    place.put("notes.txt", b"mine")
    left = cleared(target)
    assert set(left.sizes) == {*place.paths()} == {"notes.txt", *left.notes}
    target.start(plan(), left)
    assert place.paths() == ["notes.txt", "run/plan.arrow"]


def test_a_flipped_byte_of_a_commit_is_noticed(place: Place) -> None:
    driver = committed(place)
    data = bytearray(place.get(commit_path(0)))
    at = data.index(b"layer-0") + 6  # another name, and still JSON
    data[at] ^= 1
    place.put(commit_path(0), bytes(data))
    assert list(driver.receipts()) == [1]


def test_a_commit_that_was_read_wrongly_once_counts(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = committed(place)
    read = driver.store.read
    flipped: set[str] = set()

    def flips_once(path: str) -> bytes:
        data = read(path)
        if path in flipped:
            return data
        flipped.add(path)
        return data.replace(b"layer-", b"lAyer-")

    monkeypatch.setattr(driver.store, "read", flips_once)
    assert list(driver.receipts()) == [0, 1]


def test_a_receipt_that_is_known_is_not_read_again_unless_its_part_is_gone(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = committed(place)
    known = driver.receipts()
    reads: list[str] = []
    read = driver.store.read

    def counted(path: str) -> bytes:
        reads.append(path)
        return read(path)

    monkeypatch.setattr(driver.store, "read", counted)
    assert driver.shards.receipts(driver.target.look(), known) == known
    assert reads == []
    driver.store.delete([known[0].part])
    assert list(driver.shards.receipts(driver.target.look(), known)) == [1]
    assert set(reads) == {commit_path(0)}


def test_a_file_is_no_target(place: Place) -> None:
    place.put("model.bin", b"x")
    for action in (Target.look, cleared, lambda target: target.start(plan(), target.look())):
        with pytest.raises(TargetConflict, match="this is a file, but the target has to be a folder"):
            action(Target.open(f"{place.uri}/model.bin", place.storage))
    assert place.paths() == ["model.bin"]


def test_a_place_below_a_file_is_no_target(place: Place) -> None:
    if not is_local(place.uri):
        pytest.skip("object stores have such places")
    place.put("model.bin", b"x")
    with pytest.raises(TargetConflict, match=r"lies in .*model\.bin, which is a file"):
        Target.open(f"{place.uri}/model.bin/a/b", place.storage).look()
