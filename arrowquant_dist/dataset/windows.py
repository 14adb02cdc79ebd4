"""Windows: ranges of an object that contain several small values, read at once and then served from memory."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from arrowquant_dist.arena import Allocate, Arena, aligned, fresh
from arrowquant_dist.format.record import StoredRange
from arrowquant_dist.storage.base import ByteRange

# Reserved address space, which takes no memory until used. A buffer that grew with each batch got new pages each time.
_RESERVED_NBYTES = 4 << 20
PathRange = tuple[str, ByteRange]  # (path of an object, byte range in it)


@dataclass(frozen=True, slots=True)
class Window:
    """Bytes `place` of the object at `path`. at: where they begin in the memory that all windows share."""

    path: str
    place: ByteRange
    at: int

    def find(self, path: str, start: int, nbytes: int) -> int | None:
        """Where bytes of an object are in that memory; None if not all of them are in this window."""
        skipped = start - self.place.start
        return self.at + skipped if path == self.path and 0 <= skipped <= self.place.nbytes - nbytes else None


class Windows(threading.local):
    """What the calling thread has read ahead; each thread has its own. memory: uint8, the memory of all its windows.
    allocate: allocates this memory; None if few threads read, so that each may keep and reuse its own."""

    def __init__(self, allocate: Allocate | None = None) -> None:
        self.memory = fresh(0)
        self._held: Sequence[Window] = ()
        self._allocate = allocate
        self._arena = Arena()

    def memory_for(self, places: Iterable[PathRange]) -> np.ndarray:
        """Memory for all of the places, uint8. The thread's previous memory may be reused for it."""
        nbytes = windows_nbytes(places)
        if self._allocate is not None:
            return self._allocate(nbytes)
        if nbytes > _RESERVED_NBYTES:
            # goes back to the system later: no thread keeps the memory of the largest block that it has read
            return fresh(nbytes)
        self._arena.reserve(_RESERVED_NBYTES)
        return self._arena.take(nbytes)

    @contextmanager
    def holding(self, windows: Sequence[Window], memory: np.ndarray) -> Iterator[None]:
        self._held, self.memory = windows, memory
        try:
            yield
        finally:
            self._held, self.memory = (), fresh(0)

    @property
    def are_held(self) -> bool:
        return bool(self._held)

    def find(self, path: str, wanted: ByteRange) -> np.ndarray | None:
        """The bytes, as a view; None if no window has all of them."""
        at = self._find(path, wanted.start, wanted.nbytes)
        return None if at is None else self.memory[at : at + wanted.nbytes]

    def places_of(self, path: str, values: Iterable[StoredRange]) -> list[int] | None:
        """Where each value is in the memory, 0 for an empty value; None unless all of them are there."""
        places = []
        for value in values:
            at = self._find(path, value.offset, value.stored_nbytes) if value.stored_nbytes else 0
            if at is None:
                return None
            places.append(at)
        return places

    def find_all(self, path: str, values: Sequence[StoredRange]) -> list[np.ndarray] | None:
        """The stored bytes of each value, as views; None unless all of them are there."""
        places = self.places_of(path, values)
        if places is None:
            return None
        return [self.memory[at : at + value.stored_nbytes] for at, value in zip(places, values, strict=True)]

    def _find(self, path: str, start: int, nbytes: int) -> int | None:
        return place_in(self._held, path, start, nbytes)


def place_in(windows: Iterable[Window], path: str, start: int, nbytes: int) -> int | None:
    """Where bytes of an object are in the memory of these windows; None if no window has all of them."""
    for window in windows:
        at = window.find(path, start, nbytes)
        if at is not None:
            return at
    return None


def laid_out(places: Iterable[PathRange]) -> list[Window]:
    """Windows for the places, one after another in their memory."""
    windows, at = [], 0
    for path, place in places:
        windows.append(Window(path, place, at))
        at += aligned(place.nbytes)
    return windows


def windows_nbytes(places: Iterable[PathRange]) -> int:
    """Size of the memory of the windows that `laid_out` returns for the places."""
    return sum(aligned(place.nbytes) for _, place in places)


def joined(places: Iterable[tuple[str, int, int]], gap_nbytes: int) -> list[PathRange]:
    """The fewest ranges that cover all of these places, where gaps of at most `gap_nbytes` are covered as well.

    places: (path of an object, start, stop) of each value.
    """
    found: list[tuple[str, int, int]] = []
    at, first, last = "", 0, -1  # the place that grows; none yet
    for path, start, stop in sorted(places):
        if path == at and start <= last + gap_nbytes:
            last = max(last, stop)
            continue
        if last >= 0:
            found.append((at, first, last))
        at, first, last = path, start, stop
    if last >= 0:
        found.append((at, first, last))
    return [(path, ByteRange(start, stop)) for path, start, stop in found]
