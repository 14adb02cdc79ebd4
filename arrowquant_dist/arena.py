"""Memory that is handed out again: fresh pages cost more than the work done in them.

A block's source bytes and codes are tens of MiB, which the allocator gives back to the system each time; to touch such
memory anew took several times as long as to quantize into it. An arena's memory comes from the system itself: what the
allocator keeps of such pieces, once they are let go of, depends on their sizes and order, and so would a worker's peak.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from contextlib import suppress

import numpy as np

Allocate = Callable[[int], np.ndarray]  # nbytes → uint8 [nbytes], uninitialised

_ALIGNMENT = 64


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
