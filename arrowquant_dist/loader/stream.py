"""Streams of weights, for `for` and `async for`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import numpy as np

from arrowquant_dist.arena import Slabs
from arrowquant_dist.config.checks import check_choice, shown
from arrowquant_dist.dataset.prefetch import THREAD_NAME, ArrivalStream, Stream
from arrowquant_dist.errors import InvalidConfig

ORDERS: dict[str, type[Stream[Any]]] = {"given": Stream, "arrival": ArrivalStream}
T = TypeVar("T")
Pair = tuple[str, Any]
Timed = Callable[[], AbstractContextManager[None]]
ProgressCallback = Callable[[int, int, str], object]  # (bytes given so far, bytes of all, layer name)


class Memory(Protocol):
    """The memory that holds the values of one loop's tensors."""

    def take(self, nbytes: int) -> np.ndarray:
        """Returns uint8 [nbytes], uninitialised."""

    def give(self, value: Any) -> Any:
        """Returns the tensor that is handed to the caller for `value`, a tensor in this memory."""

    def take_back(self, name: str, value: Any) -> None:
        """Called with a tensor that was given when the next one is requested."""


class Owned:
    """Memory that belongs to the caller for as long as tensors use it."""

    def __init__(self) -> None:
        self.take = Slabs().take

    def give(self, value: Any) -> Any:
        return value

    def take_back(self, name: str, value: Any) -> None:
        pass


def check_progress(progress: object) -> None:
    if progress is not None and not callable(progress):
        message = (
            f"progress is {shown(progress)}; pass a function of (bytes done, bytes in all, name), or None"
        )
        raise InvalidConfig(message)


def stream_type(order: str) -> type[Stream[Any]]:
    check_choice("order", order, ORDERS)
    return ORDERS[order]


class Told:
    """Reports each layer that is given to `progress`.

    names: all layers' names. nbytes: returns the size of a name's tensor in bytes; only called if `progress` is given.
    """

    def __init__(
        self, progress: ProgressCallback | None, names: Iterable[str], nbytes: Callable[[str], int]
    ) -> None:
        self._progress = progress
        self._nbytes = {name: nbytes(name) for name in names} if progress is not None else {}
        self._done, self._total = 0, sum(self._nbytes.values())

    def __call__(self, name: str) -> None:
        if self._progress is not None:
            self._done += self._nbytes[name]
            self._progress(self._done, self._total, name)


def results(stream: Stream[Iterator[T]], timed: Timed) -> Generator[T]:
    """Yields the results of a stream of batches one by one. timed: a context entered while the caller waits for one."""
    batches = iter(stream)
    try:
        while True:
            with timed():
                batch = next(batches, None)
            if batch is None:
                return
            for result in batch:
                stream.check_usable()
                yield result
                del result  # otherwise this one would still be held here while the next is read
            del batch
    finally:
        batches.close()


class WeightStream:
    """Pairs of name and tensor, read ahead within the loader's budget, for `for` and `async for`.

    Each loop reads from the beginning. Leaving a loop early, or cancelling the task that it runs in, ends its threads
    once each has finished its current block. `async for` waits in a thread of its own and does not block the event
    loop.
    """

    def __init__(
        self,
        names: Sequence[str],
        begin: Callable[[Memory], Pairs],
        lent: Callable[[], Memory],
        memory: Callable[[], Memory] = Owned,
    ) -> None:
        """names: the layers' names. begin: starts one loop, given the memory for its tensors. memory: called once per
        loop, returns that memory. lent: takes its place for `borrowed`; raises InvalidConfig where the loader cannot
        lend tensors."""
        self._names, self._begin, self._lent, self._memory = names, begin, lent, memory

    def __len__(self) -> int:
        return len(self._names)

    @property
    def names(self) -> list[str]:
        """The names of the layers, in the order given."""
        return [*self._names]

    def borrowed(self) -> WeightStream:
        """Returns a stream of the same pairs whose tensors are valid only until the next pair is requested: `for name,
        tensor in loader.stream(…).borrowed()`.

        The loader owns their memory and reuses it, so that a stream of any length needs only the same few buffers and
        no fresh pages. Once the next pair has been requested (even if there is none), a tensor has no memory any more,
        and any use of it raises InvalidConfig, which names the layer: keep `tensor.clone()` instead. The current tensor
        stays valid when a loop is left early. Views of a tensor, and arrays over its memory (`tensor.numpy()`), stay
        valid for as long as they exist; their memory is not reused meanwhile, and does not count towards the budget.
        Raises InvalidConfig where the loader gives codes.
        """
        self._lent()
        return WeightStream(self._names, self._begin, self._lent, self._lent)

    def __iter__(self) -> Generator[Pair]:
        yield from self._begin(self._memory())

    async def __aiter__(self) -> AsyncGenerator[Pair]:
        loop = asyncio.get_running_loop()
        waiting = ThreadPoolExecutor(1, THREAD_NAME)
        pairs = None
        try:
            pairs = await loop.run_in_executor(waiting, lambda: self._begin(self._memory()))
            steps = iter(pairs)
            while (pair := await loop.run_in_executor(waiting, next, steps, None)) is not None:
                yield pair
                del pair  # otherwise this one would still be held here while the next is read
        finally:
            if pairs is not None:
                pairs.close()
            waiting.shutdown(wait=False)


class Pairs:
    """The pairs of one loop. `close` may be called while another thread waits for the next pair, and ends that wait."""

    def __init__(
        self, stream: Stream[Iterator[list[Pair]]], timed: Timed, told: Told, memory: Memory
    ) -> None:
        self._stream, self._timed, self._told, self._memory = stream, timed, told, memory

    def __iter__(self) -> Generator[Pair]:
        for pairs in results(self._stream, self._timed):
            while pairs:
                name, value = pairs.pop(0)
                value = self._memory.give(value)
                self._told(name)
                yield name, value
                self._memory.take_back(name, value)
                del value  # otherwise this one would still be held here while the next is read

    def close(self) -> None:
        self._stream.close()
