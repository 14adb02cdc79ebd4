"""New files of this machine: into the page cache, or past it straight to the disk, whichever is faster here.

A page cache that grows takes memory that nobody has touched before. Where a hypervisor has to find that memory first, a
GiB of it costs 2 to 3 s of kernel time, ten times as much as to quantize what is in it; a slow disk, on the other hand,
is what a page cache is for. So where direct writes are waited for, files are written by both ways, the time is taken,
and the faster one is kept to.

A disk that is a file of the hypervisor's has a page cache too, the host's: direct writes of 2 GB were there in a
second, and the fsync behind them took two more, in which nobody had anything to do. So direct files are synced every 32
MiB, while the next pieces are filled: an export of 2 GB took 4.1 s instead of 6.2 (every 16 MiB about as long, every 64
longer by a twelfth).

Tried as well: RWF_DONTCACHE (Linux 6.14) starts the way to the disk at once and frees the pages afterwards, and
posix_fadvise drops them later; both still take fresh pages while the disk is at work, and saved half of what direct
writes save.
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

_PIECE_NBYTES = 8 << 20  # of a direct write, at most
_PAGE_NBYTES = 4096  # what it is a multiple of, and of any disk's block
_FLUSHED_NBYTES = 32 << 20  # of a file: after so many each, what the disk itself has cached is written
_PIECES = 6  # at most, of a file: as many bytes as an upload holds
HELD_NBYTES = _PIECES * _PIECE_NBYTES  # of a store that has written a direct file
_LEARNT_NBYTES = 32 << 20  # smaller files say little
_TRIAL_EVERY = 16  # files: the other way may have become the faster one
_NEWEST = 0.5  # share of the last file in a way's rate
_WAITS = 0.75  # share of a direct file's seconds, from which on the page cache may be much faster
_COPY_RATE = 2e9  # bytes a second, of the page cache; what is made in a file's room is not copied


class NewFile(Protocol):
    """Written front to back. OSErrors are the system's, of this write or an earlier one; `close` has the last word:
    once it returns the bytes are on the disk.

    After `close`, whatever it raises, nothing is held any more.
    """

    def write(self, data: memoryview) -> None: ...
    def room(self, nbytes: int) -> np.ndarray | None:
        """See ObjectWriter.room."""

    def close(self) -> None: ...
    def abandon(self) -> None:
        """Lets go of it; what it holds is undefined."""


class CachedFile:
    """Through the page cache. descriptor: this object's from now on."""

    waited = 0.0  # not to be told from copying

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
    """direct_writes `auto`: makes direct files while these are not waited for; then by the way that was faster so far:
    each once, and the slower one now and then. `never`: cached files alone.

    Learns by files of 32 MiB and more. Used by one thread; others may, and only learn the worse. Memory: 48 MiB once
    a direct file was made.
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
        """path: of the empty file that `descriptor` was opened to write."""
        direct = self._open_direct(path) if self._way() is DirectFile else None
        return _Timed(
            CachedFile(descriptor) if direct is None else DirectFile(self, descriptor, direct), self
        )

    def learn(self, way: type[NewFile], nbytes: int, seconds: float, waited: float) -> None:
        """waited: of these seconds, for the disk; the page cache would take the rest of them as well, to copy, and no
        less than `_COPY_RATE` says."""
        if nbytes < _LEARNT_NBYTES:
            return
        if way is DirectFile:
            self._waits = waited > _WAITS * max(seconds, nbytes / _COPY_RATE)
        rate = nbytes / max(seconds, 1e-9)
        before = self._rates.get(way, rate)
        self._rates[way] = before + _NEWEST * (rate - before)
        self._files += 1

    def take_piece(self) -> np.ndarray:
        """8 MiB that begin where a page does: uint8."""
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
        # first the one that takes memory: it is the same then for short runs
        if DirectFile not in self._rates or not self._waits:
            return DirectFile
        if CachedFile not in self._rates:
            return CachedFile
        slower, faster = sorted(self._rates, key=lambda way: self._rates[way])
        return slower if self._files % _TRIAL_EVERY == 0 else faster

    def _open_direct(self, path: Path) -> int | None:
        """None where that is not to be had: whatever is wrong, the cached way will say so, or do."""
        try:
            return os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_DIRECT)
        except OSError as error:
            self.knows_direct = error.errno not in (errno.EINVAL, errno.EOPNOTSUPP)
            return None

    def _write_piece(self, descriptor: int, direct: int, piece: np.ndarray, offset: int) -> None:
        """piece: whole pages of one."""
        done = 0
        while done < piece.size:
            try:
                done += os.pwrite(direct, piece.data[done:], offset + done)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                # larger blocks than ours, or a write that was cut short inside of one by a limit
                self.knows_direct = False
                _pwrite_all(descriptor, piece.data[done:], offset + done)
                return
        if (offset + done) // _FLUSHED_NBYTES > offset // _FLUSHED_NBYTES:
            sync_file(direct)  # what it says is said once, and waited for with this piece


class DirectFile:
    """Past the page cache, in pieces that another thread writes while the next ones are filled. waited: seconds."""

    def __init__(self, disk: Disk, descriptor: int, direct: int) -> None:
        self.waited = 0.0
        self._disk, self._descriptor, self._direct = disk, descriptor, direct
        self._filling = disk.take_piece()
        self._filled = self._offset = 0
        self._at_work: deque[tuple[Future[None], np.ndarray]] = deque()

    def write(self, data: memoryview) -> None:
        left = np.frombuffer(data, np.uint8)
        if left.size and _address(left) == _address(self._filling) + self._filled:  # made in its room
            self._filled += left.size
            return
        while left.size:
            taken = left[: _PIECE_NBYTES - self._filled]
            # numpy's copy lets other threads run meanwhile; into a slice of an mmap it would not
            np.copyto(self._filling[self._filled : self._filled + taken.size], taken)
            self._filled += taken.size
            left = left[taken.size :]
            if self._filled == _PIECE_NBYTES:
                self._send()

    def room(self, nbytes: int) -> np.ndarray | None:
        if nbytes > _PIECE_NBYTES - 2 * _PAGE_NBYTES:
            return None
        if nbytes >= _PIECE_NBYTES - self._filled:  # a piece that is full has been sent
            self._send()
        return self._filling[self._filled : self._filled + nbytes]

    def close(self) -> None:
        try:
            while self._at_work:
                self._disk.give_back(self._written())
            rest = self._filling.data[: self._filled]  # no whole block, so by the other descriptor
            _pwrite_all(self._descriptor, rest, self._offset)
            sync_file(self._descriptor)  # the rest, the size, and what the disk itself has cached
        except OSError:
            self.abandon()
            raise
        self._let_go()
        os.close(self._descriptor)

    def abandon(self) -> None:
        for work, piece in self._at_work:
            work.exception()  # what is at work still needs its piece and the descriptors
            self._disk.give_back(piece)
        self._let_go()
        with suppress(OSError):
            os.close(self._descriptor)

    def _send(self) -> None:
        """The whole pages of what is filled; the next piece begins with the rest."""
        # the first one as soon as it is written: its memory is still in the CPU's cache, and another's might be new
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
        """The piece that was sent first, once it is written."""
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
    """A file whose seconds the disk learns by."""

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
