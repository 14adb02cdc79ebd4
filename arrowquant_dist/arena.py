"""Memory that is handed out again: fresh pages cost more than the work done in them.

A block's source bytes and codes are tens of MiB, which the allocator gives back to the system each time; to touch such
memory anew took several times as long as to quantize into it. An arena's memory comes from the system itself: what the
allocator keeps of such pieces, once they are let go of, depends on their sizes and order, and so would a worker's peak.
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
_LEAST_PIECE_NBYTES = 256 << 10  # of a slab
_LEAST_WHOLE_NBYTES = 1 << 20
_LEAST_OWN_NBYTES = 4 << 20  # from here on an array has pages of its own
_SIZES_AN_OCTAVE = 32  # of recycled pieces: as much as one in 32 of such a piece is not used


def fresh(nbytes: int) -> np.ndarray:
    """Memory of its own: uint8 [nbytes], uninitialised."""
    return np.empty(nbytes, np.uint8)


def whole_pages(nbytes: int) -> np.ndarray:
    """As `fresh`, and of 1 MiB and more the system has it back as soon as it is let go of; glibc would keep up to 32
    MiB of such pieces for each thread."""
    return _pages(nbytes) if nbytes >= _LEAST_WHOLE_NBYTES else fresh(nbytes)


def aligned(nbytes: int) -> int:
    """`nbytes`, rounded up to where an arena's next piece begins."""
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


class Arena:
    """Hands out pieces of one buffer until `reset`, which makes all of them invalid. Not thread-safe: one a thread.

    The buffer is as large as the largest piece so far; what does not fit beside earlier pieces is fresh memory.
    """

    def __init__(self) -> None:
        self._buffer = fresh(0)
        self._used = 0

    def reserve(self, nbytes: int) -> None:
        """Makes the whole buffer free, and at least so large: one that grows between pieces is there twice meanwhile,
        since the caller holds the last piece of the old one."""
        self._used = 0
        if nbytes > self._buffer.size:
            self._buffer = fresh(0)  # let go of the old one first
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
    """Memory for arrays that are kept, of which many come one after another: small ones lie side by side in huge pages.

    Each array of a few hundred KB alone is pages of 4 KiB, and to touch these for the first time takes several times as
    long as to decode into them: MiniLM's 91 MB of float32 took 37 ms in arrays of 0.9 MB, and 9 in pieces of slabs.
    A slab goes back to the system with the last array that lies in it, so what is kept of many small ones may hold 32
    times as much. Large arrays go back alone and at once: glibc keeps up to 32 MiB of each that it is given back, and a
    stream within 64 MiB took 87 to 138 so, and takes 60 to 80. Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left = fresh(0)

    def take(self, nbytes: int) -> np.ndarray:
        """uint8 [nbytes], uninitialised, aligned to 64 bytes. Its owner's own: nothing is handed out again."""
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
    """Memory for arrays that come and go, of much the same sizes: a piece is handed out again once its last view died.

    Of these at most `limit_nbytes` wait for their next use; pieces are up to a thirty-second larger than what was asked
    for. Thread-safe, and a view may die anywhere, in the midst of `take` too.

    An export of 2 GB that read into fresh memory each time spent 1.8 s of CPU in the kernel, and 0.9 s so.
    """

    def __init__(self, limit_nbytes: int) -> None:
        self._limit_nbytes = limit_nbytes
        self._lock = threading.RLock()
        self._waiting: defaultdict[int, list[np.ndarray]] = defaultdict(list)
        self._waiting_nbytes = 0

    def take(self, nbytes: int) -> np.ndarray:
        """uint8 [nbytes], uninitialised. Its owner's own, as long as there is a view of it."""
        if nbytes < _LEAST_PIECE_NBYTES:
            return fresh(nbytes)
        size = _rounded_up(nbytes)
        with self._lock:
            found = self._waiting[size].pop() if self._waiting[size] else None
            if found is not None:
                self._waiting_nbytes -= size
        pages = _pages(size) if found is None else found
        # not a view of the array: views of views have the first array as their base, and this is the one to watch
        piece = np.frombuffer(pages.data, np.uint8)
        weakref.finalize(piece, self._give_back, pages).atexit = False
        return piece[:nbytes]

    def _give_back(self, pages: np.ndarray) -> None:
        with self._lock:
            if self._waiting_nbytes + pages.size <= self._limit_nbytes:
                self._waiting[pages.size].append(pages)
                self._waiting_nbytes += pages.size


def _rounded_up(nbytes: int) -> int:
    """Few sizes, so that pieces fit again: the next multiple of a thirty-second of the power of two below."""
    step = (1 << (nbytes.bit_length() - 1)) // _SIZES_AN_OCTAVE
    return -(-nbytes // step) * step


def mapped(nbytes: int) -> mmap.mmap:
    """Zeros of the system's, in huge pages where it has them; it gets them back at once. OSError where it refuses."""
    pages = mmap.mmap(-1, nbytes, access=mmap.ACCESS_COPY)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # only advice: this kernel was built without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


def _pages(nbytes: int) -> np.ndarray:
    """uint8 [nbytes], as `mapped`."""
    try:
        return np.frombuffer(mapped(nbytes), np.uint8)
    except OSError as error:
        raise MemoryError(f"{nbytes} bytes") from error
