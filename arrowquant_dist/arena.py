"""Memory that is handed out again: fresh pages cost more than the work done in them.

A block's source bytes and codes are tens of MiB, which the allocator gives back to the system each time; to touch such
memory anew took several times as long as to quantize into it. An arena's memory comes from the system itself: what the
allocator keeps of such pieces, once they are let go of, depends on their sizes and order, and so would a worker's peak.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable
from contextlib import suppress

import numpy as np

Allocate = Callable[[int], np.ndarray]  # nbytes → uint8 [nbytes], uninitialised

_ALIGNMENT = 64
_SLAB_NBYTES = 8 << 20
_LEAST_PIECE_NBYTES = 256 << 10  # of a slab
_LEAST_OWN_NBYTES = 4 << 20  # from here on numpy asks for huge pages by itself


def fresh(nbytes: int) -> np.ndarray:
    """Memory of its own: uint8 [nbytes], uninitialised."""
    return np.empty(nbytes, np.uint8)


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
    times as much. Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left = fresh(0)

    def take(self, nbytes: int) -> np.ndarray:
        """uint8 [nbytes], uninitialised, aligned to 64 bytes. Its owner's own: nothing is handed out again."""
        if not _LEAST_PIECE_NBYTES <= nbytes < _LEAST_OWN_NBYTES:
            return fresh(nbytes)
        with self._lock:
            if aligned(nbytes) > self._left.size:
                self._left = _pages(_SLAB_NBYTES)
            piece, self._left = self._left[:nbytes], self._left[aligned(nbytes) :]
        return piece


def _pages(nbytes: int) -> np.ndarray:
    """uint8 [nbytes] of the system's, zeros, in huge pages where it has them; it gets them back at once."""
    try:
        pages = mmap.mmap(-1, nbytes, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise MemoryError(f"{nbytes} bytes") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # only advice: this kernel was built without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.uint8)
