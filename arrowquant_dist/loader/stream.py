"""A stream of weights, for `for` and `async for`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from arrowquant_dist.config.checks import check_choice, shown
from arrowquant_dist.dataset.prefetch import THREAD_NAME, ArrivalStream, Stream
from arrowquant_dist.errors import InvalidConfig

ORDERS: dict[str, type[Stream[Any]]] = {"given": Stream, "arrival": ArrivalStream}
T = TypeVar("T")
Pair = tuple[str, Any]
Timed = Callable[[], AbstractContextManager[None]]
ProgressCallback = Callable[[int, int, str], object]  # bytes of tensors given so far, of all, and the layer


def check_progress(progress: object) -> None:
    if progress is not None and not callable(progress):
        message = (
            f"progress is {shown(progress)}; give a function of (bytes done, bytes of all, name), or None"
        )
        raise InvalidConfig(message)


def stream_type(order: str) -> type[Stream[Any]]:
    check_choice("order", order, ORDERS)
    return ORDERS[order]


class Told:
    """Tells `progress` of each layer that is given. nbytes: {name: of its tensor}."""

    def __init__(self, progress: ProgressCallback | None, nbytes: Mapping[str, int]) -> None:
        self._progress, self._nbytes = progress, nbytes
        self._done, self._total = 0, sum(nbytes.values())

    def __call__(self, name: str) -> None:
        self._done += self._nbytes[name]
        if self._progress is not None:
            self._progress(self._done, self._total, name)


def results(stream: Stream[Iterator[T]], timed: Timed) -> Generator[T]:
    """What a stream of batches gives, one by one. timed: entered while the caller waits for it."""
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
                del result  # or the next one would be read while this one is still held here
            del batch
    finally:
        batches.close()


class WeightStream:
    """Pairs of name and tensor, read ahead within the loader's budget: `for` and `async for` both go over them.

    Each loop reads anew. Leaving one early, and cancelling the task that it runs in, ends its threads, each with the
    block that it is at. `async for` waits in a thread of its own, never in the event loop's.
    """

    def __init__(self, names: Sequence[str], begin: Callable[[], Pairs]) -> None:
        self._names, self._begin = names, begin

    def __len__(self) -> int:
        return len(self._names)

    @property
    def names(self) -> list[str]:
        """In the order given."""
        return [*self._names]

    def __iter__(self) -> Generator[Pair]:
        yield from self._begin()

    async def __aiter__(self) -> AsyncGenerator[Pair]:
        loop = asyncio.get_running_loop()
        waiting = ThreadPoolExecutor(1, THREAD_NAME)
        pairs = None
        try:
            pairs = await loop.run_in_executor(waiting, self._begin)
            steps = iter(pairs)
            while (pair := await loop.run_in_executor(waiting, next, steps, None)) is not None:
                yield pair
                del pair  # or the next one would be read while this one is still held here
        finally:
            if pairs is not None:
                pairs.close()
            waiting.shutdown(wait=False)


class Pairs:
    """One loop's pairs. `close` may be called while another thread waits for the next one, which then ends."""

    def __init__(self, stream: Stream[Iterator[list[Pair]]], timed: Timed, told: Told) -> None:
        self._stream, self._timed, self._told = stream, timed, told

    def __iter__(self) -> Generator[Pair]:
        for pairs in results(self._stream, self._timed):
            while pairs:
                pair = pairs.pop(0)
                self._told(pair[0])
                yield pair
                del pair  # or the next one would be read while this one is still held here

    def close(self) -> None:
        self._stream.close()
