"""A pinned object stays what it was, or its reader gets an error, on every storage."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from arrowquant_dist.config import Storage
from arrowquant_dist.errors import NotFound, SourceChanged
from arrowquant_dist.storage.base import ByteRange, ObjectInfo, Store
from arrowquant_dist.storage.local import LocalStore
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.pins import file_version, seconds_until_settled, what_differs
from tests.servers.fixtures import Bucket
from tests.storage.places import Place, S3Place

pytestmark = pytest.mark.usefixtures("ticks")
BEFORE, AFTER = b"a" * 3000, b"b" * 3000


def pinned(place: Place) -> Store:
    """A store that has the object `x` pinned as it is now."""
    place.put("x", BEFORE)
    [info] = open_store(place.uri, place.storage).list()
    store = open_store(place.uri, place.storage)
    store.settle([info])
    store.pin(info)
    return store


def read(store: Store) -> bytes:
    return store.read_range("x", ByteRange(1000, 2000)).tobytes()


def read_as_a_worker(store: Store) -> None:
    store.check("x")
    read(store)
    store.confirm()


def read_whole(store: Store) -> None:
    store.read("x")
    store.confirm()


def test_what_stays_is_read_and_confirmed(place: Place) -> None:
    store = pinned(place)
    store.check("x")
    assert read(store) == BEFORE[1000:2000]
    assert store.read("x") == BEFORE
    store.confirm()
    store.confirm()


def test_what_was_replaced_before_it_is_read_is_noticed(place: Place) -> None:
    store = pinned(place)
    place.put("x", AFTER)
    with pytest.raises(
        SourceChanged, match=r"/x.*: the file has changed since the plan was made \(.+\); restore it"
    ):
        read_as_a_worker(store)


def test_what_was_replaced_after_it_was_read_is_noticed(place: Place) -> None:
    """By the next read where reads tell the version, else by `confirm`."""
    store = pinned(place)
    assert read(store) == BEFORE[1000:2000]
    place.put("x", AFTER)
    with pytest.raises(SourceChanged, match="the file has changed"):
        read_as_a_worker(store)


def test_a_whole_object_that_is_not_the_pinned_one_is_noticed(place: Place) -> None:
    store = pinned(place)
    place.put("x", AFTER)
    with pytest.raises(SourceChanged, match="the file has changed"):
        read_whole(store)


def test_what_was_removed_is_noticed(place: Place) -> None:
    store = pinned(place)
    store.read("x")
    store.delete(["x"])
    with pytest.raises(NotFound):
        store.confirm()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x"
    path.write_bytes(BEFORE)
    return path


@pytest.fixture
def store(file: Path) -> LocalStore:
    store = LocalStore(str(file.parent))
    store.settle([store.info("x")])
    store.pin(store.info("x"))
    return store


def put_back_times(file: Path, stat: os.stat_result) -> None:
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_file_swapped_for_one_of_equal_size_and_mtime_is_noticed_when_it_is_opened(
    file: Path, store: LocalStore
) -> None:
    before = file.stat()
    other = file.with_name("y")
    other.write_bytes(AFTER)
    put_back_times(other, before)
    other.replace(file)
    with pytest.raises(SourceChanged, match=r"\(ctime, inode: "):
        read(store)


def test_an_open_file_of_the_old_inode_is_not_enough(file: Path, store: LocalStore) -> None:
    before = file.stat()
    assert read(store) == BEFORE[1000:2000]
    other = file.with_name("y")
    other.write_bytes(AFTER)
    put_back_times(other, before)
    other.replace(file)
    assert read(store) == BEFORE[1000:2000]  # still of the planned file
    with pytest.raises(SourceChanged, match=r"\(ctime, inode: "):
        store.confirm()


def test_a_byte_written_in_place_is_noticed_whatever_its_mtime_is_set_to(
    file: Path, store: LocalStore
) -> None:
    before = file.stat()
    read(store)
    with file.open("r+b") as out:
        out.write(b"c")
    put_back_times(file, before)
    with pytest.raises(SourceChanged, match=r"\(ctime: "):
        store.confirm()


def test_a_file_opened_anew_after_many_others_is_compared_again(file: Path, store: LocalStore) -> None:
    read(store)
    for number in range(100):
        (file.parent / f"other-{number}").write_bytes(b"1")
        store.read_range(f"other-{number}", ByteRange(0, 1))
    other = file.with_name("y")
    other.write_bytes(AFTER)
    other.replace(file)
    with pytest.raises(SourceChanged, match="inode"):
        read(store)


@pytest.mark.parametrize(
    ("changed", "now", "seconds"),
    [
        (1000.004, 1000.005, 0.019),  # within a tick: what is written now could have the same time
        (1000.004, 1000.03, 0.0),
        (1000.0, 1000.5, 1.5),  # a file system of whole seconds, or two
        (1000.0, 1003.0, 0.0),
        (2000.5, 1000.0, 0.02),  # another machine's clock
    ],
)
def test_a_file_that_was_just_written_is_settled_a_tick_later(
    changed: float, now: float, seconds: float
) -> None:
    assert seconds_until_settled(changed, now) == pytest.approx(seconds, abs=1e-6)


def test_settling_waits_for_the_youngest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("arrowquant_dist.storage.local.time.sleep", waits.append)
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"1")
    youngest = max((tmp_path / name).stat().st_ctime_ns / 1e9 for name in ("a", "b"))
    monkeypatch.setattr("arrowquant_dist.storage.local.time.time", lambda: youngest + 0.015)
    store = LocalStore(str(tmp_path))
    store.settle([*store.list(), ObjectInfo("gone", 1, "")])
    assert waits == [pytest.approx(0.005, abs=1e-4)]


def test_what_differs_is_named() -> None:
    stat = os.stat_result((0, 7, 0, 1, 0, 0, 5, 0, 3, 4), {"st_mtime_ns": 30, "st_ctime_ns": 40})
    assert file_version(stat) == "30-5-40-7"
    now = (5, "30-5-40-7")
    assert what_differs(now, now) == []
    assert what_differs((5, "30-5"), now) == []  # an older release's
    assert what_differs((5, "31-5"), now) == ["mtime"]
    assert what_differs((6, "30-6-41-8"), now) == ["size", "ctime", "inode"]
    assert what_differs((5, "abc-5"), (6, "abd-6")) == ["size", "ETag or version"]
    assert what_differs((5, "abc-2-5"), (5, "abd-2-5")) == ["ETag or version"]


def test_reading_a_pinned_object_of_s3_asks_nothing_more(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = S3Place(f"{bucket.uri}/a", Storage(bucket.storage_options), bucket.objects)
    store = pinned(place)

    def refused(*_: object) -> None:
        raise AssertionError("a request")

    monkeypatch.setattr(type(store), "info", refused)
    out = np.zeros(10, np.uint8)
    store.check("x")
    store.read_all_into("x", [(0, out), (2000, out)])
    store.confirm()
