"""A large object is created where nothing is, whole and once, and an attempt that loses leaves nothing."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from arrowquant_dist.config import Storage, Transfer
from arrowquant_dist.storage.open import open_store
from tests.servers.fixtures import Bucket
from tests.storage.places import Place

MIB = 1 << 20


def storage_of(place: Place) -> Storage:
    """With parts of the smallest size, so that an object of two of them is an upload in parts."""
    return Storage(place.storage.options, Transfer(upload_bytes=5 * MIB))


@pytest.mark.parametrize("nbytes", [0, 100, 11 * MIB])
def test_it_is_seen_when_it_is_whole(place: Place, nbytes: int) -> None:
    store, data = open_store(place.uri, storage_of(place)), os.urandom(nbytes)
    writer = store.open_new("deep/er/model.bin")
    writer.write(data[: nbytes // 2])
    assert not store.exists("deep/er/model.bin")
    writer.write(data[nbytes // 2 :])
    writer.close()
    assert not writer.was_beaten
    assert place.get("deep/er/model.bin") == data
    assert place.paths() == ["deep/er/model.bin"]


@pytest.mark.parametrize("nbytes", [100, 11 * MIB])
def test_what_was_there_first_stays(place: Place, nbytes: int) -> None:
    store = open_store(place.uri, storage_of(place))
    writer = store.open_new("model.bin")
    writer.write(bytes(nbytes))
    place.put("model.bin", b"another's")
    writer.close()
    assert writer.was_beaten
    assert place.get("model.bin") == b"another's"
    assert place.paths() == ["model.bin"]


@pytest.mark.parametrize("nbytes", [100, 11 * MIB])
def test_an_aborted_one_leaves_nothing_and_deletes_nothing(place: Place, nbytes: int) -> None:
    store = open_store(place.uri, storage_of(place))
    writer = store.open_new("model.bin")
    writer.write(bytes(nbytes))
    place.put("model.bin", b"another's")
    writer.abort()
    assert place.get("model.bin") == b"another's"
    assert place.paths() == ["model.bin"]
    assert not store.begun_uploads()


def racing(uri: str, storage: Storage) -> list[int]:
    """Which of four writers that close at once were told that theirs is there."""
    start = threading.Barrier(4)
    won: list[int] = []

    def race(i: int) -> None:
        writer = open_store(uri, storage).open_new("model.bin")
        writer.write(bytes([i]) * (6 * MIB))
        start.wait()
        writer.close()
        if not writer.was_beaten:
            won.append(i)

    threads = [threading.Thread(target=race, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won


def test_of_many_at_once_one_is_there(tmp_path: Path) -> None:
    won = racing(str(tmp_path), Storage())
    assert len(won) == 1
    assert [(f.name, f.read_bytes()) for f in tmp_path.iterdir()] == [("model.bin", bytes(won) * (6 * MIB))]


def test_of_many_at_once_on_s3_one_is_there_whole(bucket: Bucket) -> None:
    """AWS makes looking and putting one step. This server looks first, so several may be told that theirs is there."""
    storage = Storage(bucket.storage_options, Transfer(upload_bytes=5 * MIB))
    won = racing(f"{bucket.uri}/race", storage)
    store = open_store(f"{bucket.uri}/race", storage)
    assert store.read("model.bin") in [bytes([i]) * (6 * MIB) for i in won]
    assert [info.path for info in store.list()] == ["model.bin"]
    assert not store.begun_uploads()


def test_it_works_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    store = open_store(str(tmp_path))
    for content, is_beaten in ((b"1", False), (b"2", True)):
        writer = store.open_new("c")
        writer.write(content)
        writer.close()
        assert writer.was_beaten == is_beaten
    assert [(f.name, f.read_bytes()) for f in tmp_path.iterdir()] == [("c", b"1")]


def test_one_whose_temporary_file_was_swept_away_has_lost_to_what_is_there(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    writer = store.open_new("c")
    writer.write(b"late")
    for file in tmp_path.iterdir():
        file.unlink()
    (tmp_path / "c").write_bytes(b"first")
    writer.close()
    assert writer.was_beaten
    assert (tmp_path / "c").read_bytes() == b"first"
