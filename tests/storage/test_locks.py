from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from arrowquant_dist.errors import StorageError
from arrowquant_dist.storage import locks
from arrowquant_dist.storage.local import LocalStore


def test_a_file_that_another_deletes_and_makes_anew_meanwhile_is_not_the_one_that_was_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, open_file = threading.Event(), locks._opened

    def open_and_say(path: Path) -> int:
        try:
            return open_file(path)
        finally:
            opened.set()

    monkeypatch.setattr(locks, "_opened", open_and_say)
    store = LocalStore(str(tmp_path))
    store.create("x", b"old")
    version = store.info("x").version
    holder = os.open(tmp_path / "x", os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)  # as one that deletes it at this moment
    changed: list[Sequence[str]] = []
    late = threading.Thread(target=lambda: changed.append(store.delete_unchanged({"x": version})))
    late.start()
    opened.wait()
    (tmp_path / "x").unlink()
    store.create("x", b"new and longer")
    os.close(holder)
    late.join()
    assert changed == [["x"]]
    assert (tmp_path / "x").read_bytes() == b"new and longer"


def test_a_process_that_was_stopped_while_it_deletes_makes_others_fail_and_not_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_WAIT_SECONDS", -1.0)
    store = LocalStore(str(tmp_path))
    store.create("x", b"old")
    holder = os.open(tmp_path / "x", os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with pytest.raises(StorageError, match="seems to be stopped; end it"):
        store.delete_unchanged({"x": store.info("x").version})
    os.close(holder)
    assert store.delete_unchanged({"x": store.info("x").version}) == []


def test_a_file_that_may_not_be_written_can_be_deleted(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    store.create("a/x", b"old")
    (tmp_path / "a/x").chmod(0o444)
    assert store.delete_unchanged({"a/x": store.info("a/x").version}) == []
    assert not (tmp_path / "a").exists()
