"""Runs of addresses: which are free, and which have pages."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator


class Spans:
    """Disjoint runs, ascending, none of which touches the next. Runs of no length are none."""

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
        """The first `nbytes` of the lowest run that has as many."""
        return next((run[:nbytes] for run in self._runs if len(run) >= nbytes), None)

    def add(self, run: range) -> None:
        """What overlaps or touches others becomes one with them."""
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
        """What of it is not there is fine."""
        self._runs = [part for one in self._runs for part in _difference(one, run)]

    def without(self, others: Spans) -> list[range]:
        """These runs less what `others` have, ascending."""
        left = Spans()
        left._runs = [*self._runs]
        for run in others:
            left.remove(run)
        return left._runs


def _difference(run: range, taken: range) -> list[range]:
    before = range(run.start, min(run.stop, taken.start))
    after = range(max(run.start, taken.stop), run.stop)
    return [part for part in (before, after) if part]
