"""Memory that is reused, since the first touch of fresh pages costs more than the work done in them.

A block's source bytes and codes are tens of MiB, which the allocator returns to the system each time; touching such
memory anew took several times as long as quantizing into it. An arena's memory comes from the system itself: how much
freed memory the allocator keeps depends on the sizes and their order, and a worker's peak would depend on them too.
"""

from __future__ import annotations

import mmap
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress

import numpy as np

Allocate = Callable[[int], np.ndarray]  # nbytes → uint8 [nbytes], uninitialised

_ALIGNMENT = 64
_SLAB_NBYTES = 8 << 20
_LEAST_PIECE_NBYTES = 256 << 10  # smaller arrays are no pieces of a slab
_LEAST_WHOLE_NBYTES = 1 << 20
_LEAST_OWN_NBYTES = 4 << 20  # arrays of this size and more have pages of their own
_SIZES_AN_OCTAVE = 32  # sizes of recycled pieces: up to 1/32 of a piece is unused


def fresh(nbytes: int) -> np.ndarray:
    """Memory from numpy's allocator: uint8 [nbytes], uninitialised."""
    return np.empty(nbytes, np.uint8)


def whole_pages(nbytes: int) -> np.ndarray:
    """uint8 [nbytes], uninitialised. Unlike memory from `fresh`, pieces of 1 MiB and more go back to the system as soon
    as they are freed; glibc would keep up to 32 MiB of such pieces for each thread."""
    return _pages(nbytes) if nbytes >= _LEAST_WHOLE_NBYTES else fresh(nbytes)


def aligned(nbytes: int) -> int:
    """`nbytes`, rounded up to the alignment of an arena's pieces."""
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


class Arena:
    """Hands out pieces of one buffer until `reset`, which makes all of them invalid. Not thread-safe: each thread needs
    an arena of its own.

    The buffer grows to the largest size reserved so far; a piece that does not fit beside earlier ones is fresh memory.
    """

    def __init__(self) -> None:
        self._buffer = fresh(0)
        self._used = 0

    def reserve(self, nbytes: int) -> None:
        """Makes the whole buffer free, with at least `nbytes` bytes. To be called before the first piece: while pieces
        are held, the old buffer stays in memory beside a larger new one."""
        self._used = 0
        if nbytes > self._buffer.size:
            self._buffer = fresh(0)  # free the old one first
            self._buffer = _pages(nbytes)

    def take(self, nbytes: int) -> np.ndarray:
        """uint8 [nbytes], uninitialised, aligned to 64 bytes where it is a piece of the buffer."""
        if self._used == 0:
            self.reserve(nbytes)
        start = aligned(self._used)
        if start + nbytes > self._buffer.size:
            return fresh(nbytes)
        self._used = start + nbytes
        return self._buffer[start : self._used]

    def reset(self) -> None:
        """Makes the whole buffer free again."""
        self._used = 0


class Slabs:
    """Memory for many arrays that are kept, one after another: small ones lie side by side in huge pages.

    An array of a few hundred KB by itself consists of pages of 4 KiB, and the first touch of these takes several times
    as long as decoding into them: MiniLM's 91 MB of float32 took 37 ms in arrays of 0.9 MB, and 9 in pieces of slabs.
    A slab goes back to the system with the last array in it, so small arrays that are kept may hold 32 times their
    size. Large arrays go back alone and at once: glibc keeps up to 32 MiB of each that is freed, with which a stream
    within 64 MiB took 87 to 138 MiB; it takes 60 to 80. Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left = fresh(0)

    def take(self, nbytes: int) -> np.ndarray:
        """uint8 [nbytes], uninitialised, aligned to 64 bytes. It belongs to the caller and is never reused."""
        if nbytes < _LEAST_PIECE_NBYTES:
            return fresh(nbytes)
        if nbytes >= _LEAST_OWN_NBYTES:
            return _pages(nbytes)
        with self._lock:
            if aligned(nbytes) > self._left.size:
                self._left = _pages(_SLAB_NBYTES)
            piece, self._left = self._left[:nbytes], self._left[aligned(nbytes) :]
        return piece


class Recycled:
    """Memory for arrays of similar sizes that come and go: a piece is reused once the last view of it is gone.

    Unused pieces of at most `limit_nbytes` in all are kept; a piece is up to a thirty-second larger than the size asked
    for. Thread-safe; a view may be freed anywhere, even within `take`.

    An export of 2 GB spent 1.8 s of CPU in the kernel when it read into fresh memory each time, and 0.9 s this way.
    """

    def __init__(self, limit_nbytes: int) -> None:
        self._limit_nbytes = limit_nbytes
        self._lock = threading.RLock()
        self._waiting: defaultdict[int, list[np.ndarray]] = defaultdict(list)
        self._waiting_nbytes = 0

    def take(self, nbytes: int) -> np.ndarray:
        """uint8 [nbytes], uninitialised. It belongs to the caller as long as there is a view of it."""
        if nbytes < _LEAST_PIECE_NBYTES:
            return fresh(nbytes)
        size = _rounded_up(nbytes)
        with self._lock:
            found = self._waiting[size].pop() if self._waiting[size] else None
            if found is not None:
                self._waiting_nbytes -= size
        pages = _pages(size) if found is None else found
        # not a view of `pages`: views of views have the first array as their base, and `piece` is the one to watch
        piece = np.frombuffer(pages.data, np.uint8)
        weakref.finalize(piece, self._give_back, pages).atexit = False
        return piece[:nbytes]

    def _give_back(self, pages: np.ndarray) -> None:
        with self._lock:
            if self._waiting_nbytes + pages.size <= self._limit_nbytes:
                self._waiting[pages.size].append(pages)
                self._waiting_nbytes += pages.size


def _rounded_up(nbytes: int) -> int:
    """The next multiple of a thirty-second of the power of two below: few sizes, so that pieces can be reused."""
    step = (1 << (nbytes.bit_length() - 1)) // _SIZES_AN_OCTAVE
    return -(-nbytes // step) * step


def mapped(nbytes: int) -> mmap.mmap:
    """Zeroed memory from the system, in huge pages where it has them, returned as soon as it is freed. Raises OSError
    where the system refuses."""
    pages = mmap.mmap(-1, nbytes, access=mmap.ACCESS_COPY)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # only advice: the kernel may be built without huge pages
            pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


def _pages(nbytes: int) -> np.ndarray:
    """uint8 [nbytes], from `mapped`. Raises MemoryError."""
    try:
        return np.frombuffer(mapped(nbytes), np.uint8)
    except OSError as error:
        raise MemoryError(f"{nbytes} bytes") from error
