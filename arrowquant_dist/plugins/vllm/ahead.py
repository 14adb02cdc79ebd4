"""Reads the parts that a model is going to take next while it takes the earlier ones.

Which part of a layer a rank takes is only known when its parameter takes it, one layer after another: over a network,
each would wait for a request of its own. But the blocks of a model are alike: the part that was taken of
`model.layers.0.mlp.up_proj.weight` will also be taken of `model.layers.1.mlp.up_proj.weight`, so that is read ahead. A
part that was not predicted is read when it is requested; a predicted part that is not requested is dropped.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Self, TypeVar

from arrowquant_dist.plugins.vllm.lazy import Box

T = TypeVar("T")

_NUMBER = re.compile(r"\d+")
_MOST_IN_VAIN = (
    16  # parts that were read in vain, in addition to the number of useful ones, after which prediction stops
)


class Ahead(Generic[T]):
    """Reads parts of layers ahead.

    shapes: {layer: shape}, in the order in which they are likely to be taken. read: reads a part of a layer; called in
    several threads. nbytes: returns the size of what `read` returns. workers: number of threads. limit_nbytes: most
    bytes of results that wait to be taken.

    Only one thread may take parts. `in_vain` counts the parts that were dropped.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        read: Callable[[str, Box], T],
        nbytes: Callable[[str, Box], int],
        *,
        workers: int,
        limit_nbytes: int,
    ) -> None:
        # Layers are alike if their names differ only in the first number and they have the same shape.
        self._kinds = {name: (_NUMBER.sub("#", name, count=1), shape) for name, shape in shapes.items()}
        self._order = [*shapes]
        self._at = {name: index for index, name in enumerate(self._order)}
        self._read, self._nbytes, self._limit_nbytes = read, nbytes, limit_nbytes
        self._pool = ThreadPoolExecutor(workers, "arrowquant-ahead")
        self._known: dict[
            tuple[str, tuple[int, ...]], list[Box]
        ] = {}  # the parts taken of the latest layer of a kind
        self._current, self._boxes = -1, list[Box]()
        self._next, self._todo = 0, deque[tuple[str, Box]]()
        self._running: dict[tuple[str, Box], Future[T]] = {}
        self._held_nbytes = 0
        self._of_use, self.in_vain = 0, 0

    def take(self, name: str, box: Box) -> T:
        """Returns the part, whether it has been read already or not. Raises what reading it raised."""
        self._arrive(self._at[name])
        self._boxes.append(box)
        found = self._forget(name, box)
        self._foresee()
        if found is None:
            return self._read(name, box)
        self._of_use += 1
        return found.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _arrive(self, index: int) -> None:
        """Called when parts are taken of another layer than before: all parts of the previous one are then known."""
        if index == self._current:
            return
        if self._current >= 0:
            self._known[self._kinds[self._order[self._current]]] = self._boxes
        for passed in self._order[self._current + 1 : index]:  # no part was taken of these
            self._known.setdefault(self._kinds[passed], [])
        self._current, self._boxes = index, []
        self._todo = deque(pair for pair in self._todo if self._at[pair[0]] >= index)
        self._next = max(self._next, index + 1)
        for name, box in [pair for pair in self._running if self._at[pair[0]] < index]:
            self._forget(name, box)
            self.in_vain += 1

    def _forget(self, name: str, box: Box) -> Future[T] | None:
        found = self._running.pop((name, box), None)
        if found is not None:
            self._held_nbytes -= self._nbytes(name, box)
        return found

    def _foresee(self) -> None:
        """Begins to read predicted parts, as far as there is room."""
        while self.in_vain <= self._of_use + _MOST_IN_VAIN:
            while not self._todo:
                if self._next == len(self._order):
                    return
                name = self._order[self._next]
                boxes = self._known.get(self._kinds[name])
                if boxes is None:
                    return
                self._next += 1
                self._todo.extend((name, box) for box in boxes)
            name, box = self._todo[0]
            nbytes = self._nbytes(name, box)
            if nbytes <= self._limit_nbytes < self._held_nbytes + nbytes:
                return
            self._todo.popleft()
            if nbytes <= self._limit_nbytes:
                self._held_nbytes += nbytes
                self._running[name, box] = self._pool.submit(self._read, name, box)
