"""Bytes of an object that several small values lie in, read at once and then served from memory."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from arrowquant_dist.arena import Allocate, Arena, aligned
from arrowquant_dist.format.record import StoredRange
from arrowquant_dist.storage.base import ByteRange

PathRange = tuple[str, ByteRange]  # an object's path, and bytes of it


class Windows(threading.local):
    """What the thread that asks has read ahead; each thread has its own. allocate: its memory, or None where few
    threads read, so that each may keep what it had."""

    def __init__(self, allocate: Allocate | None = None) -> None:
        self._held: list[tuple[str, ByteRange, np.ndarray]] = []
        self._allocate = allocate
        self._memory = Arena()

    def memory_for(self, places: Iterable[PathRange]) -> list[np.ndarray]:
        """uint8, a piece for each; what this thread had for the places before is free then."""
        sizes = [place.nbytes for _, place in places]
        if self._allocate is not None:
            return [self._allocate(nbytes) for nbytes in sizes]
        self._memory.reserve(sum(map(aligned, sizes)))
        return [self._memory.take(nbytes) for nbytes in sizes]

    @contextmanager
    def holding(self, windows: Iterable[tuple[str, ByteRange, np.ndarray]]) -> Iterator[None]:
        self._held = [*windows]
        try:
            yield
        finally:
            self._held = []

    @property
    def are_held(self) -> bool:
        return bool(self._held)

    def find(self, path: str, wanted: ByteRange) -> np.ndarray | None:
        """The bytes, as a view of a window; None where none has them all."""
        for where, has, memory in self._held:
            if where == path and has.start <= wanted.start and wanted.stop <= has.stop:
                return memory[wanted.start - has.start : wanted.stop - has.start]
        return None

    def find_all(self, path: str, wanted: Sequence[StoredRange]) -> list[np.ndarray] | None:
        """The stored bytes of each, as views of one window; None where none has them all."""
        for where, has, memory in self._held:
            if where == path and all(
                has.start <= value.offset and value.offset + value.stored_nbytes <= has.stop
                for value in wanted
                if value.stored_nbytes
            ):
                starts = [value.offset - has.start for value in wanted]
                return [memory[at : at + v.stored_nbytes] for at, v in zip(starts, wanted, strict=True)]
        return None


def joined(places: Iterable[PathRange], gap_nbytes: int) -> list[PathRange]:
    """As few places as have all of these, with no more than `gap_nbytes` that nobody asked for between two of them."""
    found: list[PathRange] = []
    for path, wanted in sorted(places, key=lambda place: (place[0], place[1].start)):
        before = found[-1] if found else ("", wanted)
        if before[0] == path and wanted.start <= before[1].stop + gap_nbytes:
            found[-1] = path, ByteRange(before[1].start, max(before[1].stop, wanted.stop))
        else:
            found.append((path, wanted))
    return found
