"""New files on local disk, written either through the page cache or directly to the disk, whichever is faster here.

A growing page cache takes memory that has not been touched before. If a hypervisor has to provide that memory first,
a GiB of it costs 2 to 3 s of kernel time, ten times as much as quantizing its content; a slow disk, on the other
hand, is what a page cache is for. So if direct writes have to be waited for, files are written in both ways, the
times are compared, and the faster way is used from then on.

A disk that is a file of the hypervisor's has a page cache too, the host's: direct writes of 2 GB took one second, and
the fsync after them two more, during which everything else was idle. So direct files are synced every 32 MiB, while
the next pieces are filled: an export of 2 GB then took 4.1 s instead of 6.2 (about the same with every 16 MiB, a
twelfth longer with every 64).

Also tried: RWF_DONTCACHE (Linux 6.14) starts writing at once and frees the pages afterwards, and posix_fadvise drops
them later. Both still take fresh pages while the disk is at work, and saved half of what direct writes save.
"""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np

from arrowquant_dist.arena import mapped
from arrowquant_dist.storage.durable import sync_file

_PIECE_NBYTES = 8 << 20  # maximum size of a direct write
_PAGE_NBYTES = 4096  # direct writes are aligned to it; a multiple of any disk's block size
_FLUSHED_NBYTES = 32 << 20  # a direct file is synced after every so many bytes
_PIECES = 6  # maximum per file: as many bytes as an upload holds
HELD_NBYTES = _PIECES * _PIECE_NBYTES  # held by a store that has written a direct file
_LEARNT_NBYTES = 32 << 20  # smaller files are too noisy to learn from
_TRIAL_EVERY = 16  # files after which the slower way is tried again
_NEWEST = 0.5  # weight of the last file in a way's rate
_WAITS = 0.75  # share of a direct file's time spent waiting above which the page cache may be much faster
_COPY_RATE = 2e9  # bytes per second of copying to the page cache; data made in a file's room is not copied


class NewFile(Protocol):
    """A file that is written from front to back. OSErrors are the system's, of this write or an earlier one; `close`
    is decisive: once it returns, the bytes are on the disk.

    After `close`, whether it succeeds or raises, no resources are held.
    """

    def write(self, data: memoryview) -> None: ...
    def room(self, nbytes: int) -> np.ndarray | None:
        """See ObjectWriter.room."""

    def close(self) -> None: ...
    def abandon(self) -> None:
        """Releases the file; its content is undefined."""


class CachedFile:
    """Writes through the page cache. descriptor: owned by this object from now on."""

    waited = 0.0  # waiting cannot be told from copying here

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, data: memoryview) -> None:
        while data:
            data = data[os.write(self._descriptor, data) :]

    def room(self, _nbytes: int) -> np.ndarray | None:
        return None

    def close(self) -> None:
        try:
            sync_file(self._descriptor)
        finally:
            os.close(self._descriptor)

    def abandon(self) -> None:
        with suppress(OSError):
            os.close(self._descriptor)


class Disk:
    """Makes new files, and learns which way of writing is faster. direct_writes: `auto`: direct files, as long as the
    disk keeps up with them; otherwise the way that has been faster so far, after each was tried once, and the slower
    one now and then. `never`: cached files only.

    It learns from files of 32 MiB and more. Used by one thread; others may use it too, but then it learns less well.
    Memory: 48 MiB once a direct file was made.
    """

    def __init__(self, direct_writes: str = "auto") -> None:
        self.direct_writes = direct_writes
        self.knows_direct = direct_writes != "never" and hasattr(os, "O_DIRECT")
        self._rates: dict[type[NewFile], float] = {}
        self._files = 0
        self._waits = False
        self._pieces: list[np.ndarray] = []
        self._thread: ThreadPoolExecutor | None = None

    def make(self, path: Path, descriptor: int) -> NewFile:
        """A new file. path: of the empty file that `descriptor` was opened to write."""
        direct = self._open_direct(path) if self._way() is DirectFile else None
        return _Timed(
            CachedFile(descriptor) if direct is None else DirectFile(self, descriptor, direct), self
        )

    def learn(self, way: type[NewFile], nbytes: int, seconds: float, waited: float) -> None:
        """Records how long a file took. waited: seconds of waiting for the disk. Through the page cache, the rest of
        the time would be spent too, for copying, and at least as much as `_COPY_RATE` implies."""
        if nbytes < _LEARNT_NBYTES:
            return
        if way is DirectFile:
            self._waits = waited > _WAITS * max(seconds, nbytes / _COPY_RATE)
        rate = nbytes / max(seconds, 1e-9)
        before = self._rates.get(way, rate)
        self._rates[way] = before + _NEWEST * (rate - before)
        self._files += 1

    def take_piece(self) -> np.ndarray:
        """A page-aligned buffer of 8 MiB: uint8."""
        return self._pieces.pop() if self._pieces else np.frombuffer(mapped(_PIECE_NBYTES), np.uint8)

    def give_back(self, piece: np.ndarray) -> None:
        self._pieces.append(piece)

    def submit(self, descriptor: int, direct: int, piece: np.ndarray, offset: int) -> Future[None]:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="disk")
        return self._thread.submit(self._write_piece, descriptor, direct, piece, offset)

    def _way(self) -> type[NewFile]:
        if not self.knows_direct:
            return CachedFile
        # start with the way that takes memory, so that short and long runs hold the same
        if DirectFile not in self._rates or not self._waits:
            return DirectFile
        if CachedFile not in self._rates:
            return CachedFile
        slower, faster = sorted(self._rates, key=lambda way: self._rates[way])
        return slower if self._files % _TRIAL_EVERY == 0 else faster

    def _open_direct(self, path: Path) -> int | None:
        """A descriptor for direct writes, None if unavailable: the cached way will then report the problem, or work."""
        try:
            return os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_DIRECT)
        except OSError as error:
            self.knows_direct = error.errno not in (errno.EINVAL, errno.EOPNOTSUPP)
            return None

    def _write_piece(self, descriptor: int, direct: int, piece: np.ndarray, offset: int) -> None:
        """Writes a piece of whole pages."""
        done = 0
        while done < piece.size:
            try:
                done += os.pwrite(direct, piece.data[done:], offset + done)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                # the disk's blocks are larger than a page, or a limit has cut a write short within a block
                self.knows_direct = False
                _pwrite_all(descriptor, piece.data[done:], offset + done)
                return
        if (offset + done) // _FLUSHED_NBYTES > offset // _FLUSHED_NBYTES:
            sync_file(direct)  # the system reports an error only once; it is raised with this piece


class DirectFile:
    """Writes directly to the disk, in pieces that another thread writes while the next ones are filled. waited:
    seconds of waiting for the disk."""

    def __init__(self, disk: Disk, descriptor: int, direct: int) -> None:
        self.waited = 0.0
        self._disk, self._descriptor, self._direct = disk, descriptor, direct
        self._filling = disk.take_piece()
        self._filled = self._offset = 0
        self._at_work: deque[tuple[Future[None], np.ndarray]] = deque()

    def write(self, data: memoryview) -> None:
        left = np.frombuffer(data, np.uint8)
        if left.size and _address(left) == _address(self._filling) + self._filled:  # made in our `room`
            self._filled += left.size
            return
        while left.size:
            taken = left[: _PIECE_NBYTES - self._filled]
            # numpy's copy releases the GIL; assigning to a slice of an mmap would not
            np.copyto(self._filling[self._filled : self._filled + taken.size], taken)
            self._filled += taken.size
            left = left[taken.size :]
            if self._filled == _PIECE_NBYTES:
                self._send()

    def room(self, nbytes: int) -> np.ndarray | None:
        if nbytes > _PIECE_NBYTES - 2 * _PAGE_NBYTES:
            return None
        if nbytes >= _PIECE_NBYTES - self._filled:  # `write` leaves no piece full
            self._send()
        return self._filling[self._filled : self._filled + nbytes]

    def close(self) -> None:
        try:
            while self._at_work:
                self._disk.give_back(self._written())
            rest = self._filling.data[: self._filled]  # not whole pages, so through the cached descriptor
            _pwrite_all(self._descriptor, rest, self._offset)
            sync_file(self._descriptor)  # syncs the rest, the size, and the disk's own cache
        except OSError:
            self.abandon()
            raise
        self._let_go()
        os.close(self._descriptor)

    def abandon(self) -> None:
        for work, piece in self._at_work:
            work.exception()  # waits: a write in progress still needs its piece and the descriptors
            self._disk.give_back(piece)
        self._let_go()
        with suppress(OSError):
            os.close(self._descriptor)

    def _send(self) -> None:
        """Sends the whole pages that are filled; the next piece begins with the rest."""
        # reuse the oldest piece as soon as it is written: its memory is in the CPU's cache, a new one's is not
        is_reused = len(self._at_work) == _PIECES - 1 or (self._at_work and self._at_work[0][0].done())
        piece = self._written() if is_reused else self._disk.take_piece()
        whole = self._filled // _PAGE_NBYTES * _PAGE_NBYTES
        rest = self._filled - whole
        piece[:rest] = self._filling[whole : self._filled]
        work = self._disk.submit(self._descriptor, self._direct, self._filling[:whole], self._offset)
        self._at_work.append((work, self._filling))
        self._filling, self._filled = piece, rest
        self._offset += whole

    def _written(self) -> np.ndarray:
        """Waits until the oldest piece sent is written, and returns it."""
        work, piece = self._at_work[0]
        begun = time.perf_counter()
        work.result()
        self.waited += time.perf_counter() - begun
        self._at_work.popleft()
        return piece

    def _let_go(self) -> None:
        with suppress(OSError):
            os.close(self._direct)
        self._disk.give_back(self._filling)


class _Timed:
    """Measures a file's time for the disk to learn from."""

    def __init__(self, file: CachedFile | DirectFile, disk: Disk) -> None:
        self._file, self._disk = file, disk
        self._nbytes, self._seconds = 0, 0.0

    def write(self, data: memoryview) -> None:
        begun = time.perf_counter()
        self._file.write(data)
        self._seconds += time.perf_counter() - begun
        self._nbytes += len(data)

    def room(self, nbytes: int) -> np.ndarray | None:
        begun = time.perf_counter()
        room = self._file.room(nbytes)
        self._seconds += time.perf_counter() - begun
        return room

    def close(self) -> None:
        begun = time.perf_counter()
        self._file.close()
        seconds = self._seconds + time.perf_counter() - begun
        self._disk.learn(type(self._file), self._nbytes, seconds, self._file.waited)

    def abandon(self) -> None:
        self._file.abandon()


def _address(memory: np.ndarray) -> int:
    address: int = memory.__array_interface__["data"][0]
    return address


def _pwrite_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count
