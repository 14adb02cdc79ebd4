"""Sets of address ranges: which addresses are free, and which have pages."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator


class Spans:
    """Disjoint ranges in ascending order that do not touch each other. Empty ranges are ignored."""

    def __init__(self, *runs: range) -> None:
        self._runs: list[range] = []
        for run in runs:
            self.add(run)

    def __iter__(self) -> Iterator[range]:
        return iter(self._runs)

    @property
    def nbytes(self) -> int:
        return sum(map(len, self._runs))

    def first(self, nbytes: int) -> range | None:
        """Returns the first `nbytes` of the lowest range that has as many, or None."""
        return next((run[:nbytes] for run in self._runs if len(run) >= nbytes), None)

    def add(self, run: range) -> None:
        """Adds a range, merged with those that it overlaps or touches."""
        if not run:
            return
        low = bisect_left(self._runs, run.start, key=lambda one: one.stop)
        high = low
        start, stop = run.start, run.stop
        while high < len(self._runs) and self._runs[high].start <= stop:
            start, stop = min(start, self._runs[high].start), max(stop, self._runs[high].stop)
            high += 1
        self._runs[low:high] = [range(start, stop)]

    def remove(self, run: range) -> None:
        """Removes a range; parts of it that are not in the set are ignored."""
        self._runs = [part for one in self._runs for part in _difference(one, run)]

    def without(self, others: Spans) -> list[range]:
        """Returns these ranges less those of `others`, ascending."""
        left = Spans()
        left._runs = [*self._runs]
        for run in others:
            left.remove(run)
        return left._runs


def _difference(run: range, taken: range) -> list[range]:
    before = range(run.start, min(run.stop, taken.start))
    after = range(max(run.start, taken.stop), run.stop)
    return [part for part in (before, after) if part]
