"""Files written in either way have the right content, errors are not lost, and the faster way is kept."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_dist.config import RunConfig
from arrowquant_dist.config.choices import DirectWrites
from arrowquant_dist.errors import StorageError
from arrowquant_dist.storage import disk
from arrowquant_dist.storage.disk import CachedFile, DirectFile, Disk, NewFile
from arrowquant_dist.storage.local import LocalStore
from arrowquant_dist.storage.open import open_store

MIB = 1 << 20
PIECE = 64 << 10

pytestmark = pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system has no O_DIRECT")


@pytest.fixture(scope="module", autouse=True)
def _small_pieces() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "_PIECE_NBYTES", PIECE)
        yield


def empty(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)


def direct(maker: Disk, path: Path) -> DirectFile:
    return DirectFile(maker, empty(path), os.open(path, os.O_WRONLY | os.O_DIRECT))


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def way(maker: Disk, folder: Path) -> type[NewFile]:
    """How the next file is made."""
    file = maker.make(folder / "next", empty(folder / "next"))
    file.abandon()
    return type(file._file)  # type: ignore[attr-defined]


@settings(max_examples=40)
@given(
    writes=st.lists(
        st.tuples(st.integers(0, 2 * PIECE) | st.integers(0, 9 * PIECE), st.booleans(), st.booleans()),
        max_size=8,
    ),
    seed=st.integers(0, 1 << 30),
)
def test_a_direct_file_has_every_byte(
    tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[int, bool, bool]], seed: int
) -> None:
    """Also of what is made in the room that the file has for it, and where that was asked for and is not used."""
    path = tmp_path_factory.mktemp("direct") / "file"
    total = sum(size for size, _, _ in writes)
    content = (seed.to_bytes(4, "little") + bytes(range(256))) * (total // 260 + 1)
    file, start = direct(Disk(), path), 0
    for size, is_asked_for, is_used in writes:
        data = memoryview(content)[start : start + size]
        room = file.room(size) if is_asked_for else None
        if room is not None and is_used:
            room[:] = np.frombuffer(data, np.uint8)
            data = room.data
        file.write(data)
        start += size
    file.close()
    assert path.read_bytes() == content[:start]


def test_what_is_made_in_a_files_own_room_is_not_copied(tmp_path: Path) -> None:
    file = direct(Disk(), tmp_path / "file")
    file.write(memoryview(b"before"))
    room = file.room(PIECE // 2)
    assert room is not None
    room[:] = 7
    file.write(room.data)
    room[:] = 8  # which nobody may do afterwards: it is the file's own memory
    file.close()
    assert (tmp_path / "file").read_bytes() == b"before" + bytes([8]) * (PIECE // 2)
    assert CachedFile(empty(tmp_path / "cached")).room(8) is None


def test_memory_is_used_again_from_file_to_file_and_nothing_stays_open(tmp_path: Path) -> None:
    maker = Disk()
    before = open_files()
    for number in range(3):
        file = direct(maker, tmp_path / str(number))
        file.write(memoryview(bytes(9 * PIECE + 1)))
        file.abandon() if number == 1 else file.close()
    assert 1 < len(maker._pieces) <= disk._PIECES
    assert open_files() == before


def test_a_file_system_without_direct_writes_gets_cached_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker, real = Disk(), os.open
    assert way(maker, tmp_path) is DirectFile

    def refuse(path: Path, flags: int, *more: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no")
        return real(path, flags, *more)

    monkeypatch.setattr(os, "open", refuse)
    assert way(maker, tmp_path) is CachedFile
    assert not maker.knows_direct


def opened_directly(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Of files that are opened from now on, those that are opened past the page cache."""
    found: list[Path] = []
    real = os.open

    def watch(path: Path, flags: int, *more: int) -> int:
        if flags & os.O_DIRECT:
            found.append(path)
        return real(path, flags, *more)

    monkeypatch.setattr(os, "open", watch)
    return found


@pytest.mark.parametrize(("direct_writes", "count"), [("auto", 1), ("never", 0)])
def test_whether_parts_go_past_the_page_cache_is_a_setting_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct_writes: DirectWrites, count: int
) -> None:
    """It reaches the store of a worker in another process too."""
    run = RunConfig(direct_writes=direct_writes)
    store = pickle.loads(pickle.dumps(open_store(str(tmp_path), run.target_storage)))  # noqa: S301 - ours
    found = opened_directly(monkeypatch)
    content = os.urandom(3 * PIECE + 5)
    with store.open_writer("part") as writer:
        writer.write(content)
    assert (tmp_path / "part").read_bytes() == content
    assert len(found) == count


def test_a_direct_write_that_is_refused_goes_the_other_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk whose blocks are larger than what a piece is a multiple of says so at the first write."""
    maker, real = Disk(), os.pwrite
    file = direct(maker, tmp_path / "file")

    def refuse(descriptor: int, data: memoryview, offset: int) -> int:
        if descriptor == file._direct:
            raise OSError(errno.EINVAL, "no")
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", refuse)
    content = os.urandom(3 * PIECE + 5)
    file.write(memoryview(content))
    file.close()
    assert (tmp_path / "file").read_bytes() == content
    assert not maker.knows_direct


@pytest.mark.parametrize("pieces", [1, 9])
def test_an_error_of_the_other_thread_is_raised_at_the_latest_by_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: int
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    before = open_files()
    store = LocalStore(str(tmp_path))
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageError, match="disk is full"), store.open_writer("file") as writer:
        writer.write(bytes(pieces * PIECE))
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    assert open_files() == before


def test_a_disk_with_a_cache_is_made_to_write_while_the_next_pieces_are_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else all of a file is waited for at its end."""
    sizes: list[int] = []
    monkeypatch.setattr(disk, "_FLUSHED_NBYTES", 2 * PIECE)
    monkeypatch.setattr(os, "fsync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    file = direct(Disk(), tmp_path / "file")
    file.write(memoryview(bytes(5 * PIECE + 1)))
    file.close()
    assert sizes == [2 * PIECE, 4 * PIECE, 5 * PIECE + 1]


def test_what_is_lost_before_the_end_of_a_file_is_told_though_the_last_sync_knows_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system says it once."""
    errors = [OSError(errno.EIO, "lost")]

    def sync(_: int) -> None:
        if errors:
            raise errors.pop()

    monkeypatch.setattr(disk, "_FLUSHED_NBYTES", PIECE)
    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(StorageError, match="lost"), LocalStore(str(tmp_path)).open_new("file") as writer:
        writer.write(bytes(3 * PIECE))
    assert not list(tmp_path.iterdir())


_LIMITED = """
import os, resource, signal, sys
from pathlib import Path
from arrowquant_dist.storage.disk import DirectFile, Disk
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_001, 10_000_001))
path = Path(sys.argv[1])
descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
file = DirectFile(Disk(), descriptor, os.open(path, os.O_WRONLY | os.O_DIRECT))
try:
    file.write(memoryview(bytes(30_000_000)))
    file.close()
except OSError as error:
    print(error.errno)
"""


def test_a_limit_within_a_block_is_told_as_one(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _LIMITED, str(tmp_path / "file")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(errno.EFBIG)]


def learn(maker: Disk, way: type[NewFile], seconds: float) -> None:
    """Of a file that was waited for, if it was direct."""
    maker.learn(way, 100 * MIB, seconds, 0.9 * seconds if way is DirectFile else 0.0)


def test_each_way_is_tried_and_the_faster_one_kept_to(tmp_path: Path) -> None:
    maker = Disk()
    assert way(maker, tmp_path) is DirectFile
    learn(maker, DirectFile, 0.5)
    assert way(maker, tmp_path) is CachedFile
    learn(maker, CachedFile, 1.0)
    assert way(maker, tmp_path) is DirectFile
    for _ in range(3):
        learn(maker, DirectFile, 4.0)
    assert way(maker, tmp_path) is CachedFile


def test_the_slower_way_gets_another_chance(tmp_path: Path) -> None:
    maker = Disk()
    learn(maker, DirectFile, 4.0)
    found = []
    for _ in range(2 * disk._TRIAL_EVERY):
        learn(maker, CachedFile, 1.0)
        found.append(way(maker, tmp_path))
    assert found.count(DirectFile) == 2


def test_direct_files_that_are_not_waited_for_are_kept_to(tmp_path: Path) -> None:
    maker = Disk()
    for _ in range(2 * disk._TRIAL_EVERY):
        maker.learn(DirectFile, 100 * MIB, 0.1, 0.05)
        assert way(maker, tmp_path) is DirectFile
    learn(maker, DirectFile, 4.0)
    assert way(maker, tmp_path) is CachedFile


class SlowWrites:
    """A clock that a write puts forward by a second, once somebody waits for it: it is asked before and after."""

    def __init__(self) -> None:
        self._now = self._asked = 0
        self._write = os.pwrite
        self._waits = threading.Semaphore(0)

    def perf_counter(self) -> float:
        self._asked += 1
        if self._asked % 2:
            self._waits.release()
        return float(self._now)

    def pwrite(self, descriptor: int, data: memoryview, offset: int) -> int:
        self._waits.acquire()
        self._now += 1
        return self._write(descriptor, data, offset)


def test_a_direct_file_knows_how_long_it_was_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker, slow = Disk(), SlowWrites()
    quick = direct(maker, tmp_path / "quick")
    quick.write(memoryview(bytes(PIECE)))
    assert quick.waited == 0
    quick.close()
    monkeypatch.setattr(disk, "time", slow)
    file = direct(maker, tmp_path / "file")
    monkeypatch.setattr(os, "pwrite", slow.pwrite)
    file.write(memoryview(bytes((disk._PIECES + 3) * PIECE)))
    file.close()
    assert file.waited == disk._PIECES + 3


def test_small_files_teach_nothing(tmp_path: Path) -> None:
    maker = Disk()
    maker.learn(DirectFile, MIB, 1e-9, 1e-9)
    assert way(maker, tmp_path) is DirectFile
    learn(maker, DirectFile, 1.0)
    assert way(maker, tmp_path) is CachedFile
