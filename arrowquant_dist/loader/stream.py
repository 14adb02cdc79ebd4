"""A stream of weights, for `for` and `async for`."""

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
ProgressCallback = Callable[[int, int, str], object]  # bytes of tensors given so far, of all, and the layer


class Memory(Protocol):
    """Where one loop's tensors have their values."""

    def take(self, nbytes: int) -> np.ndarray:
        """uint8 [nbytes], uninitialised."""

    def give(self, value: Any) -> Any:
        """A tensor in such memory as it is handed over."""

    def take_back(self, name: str, value: Any) -> None:
        """Called when the next one is asked for."""


class Owned:
    """Memory that is the caller's, as long as there are tensors in it."""

    def __init__(self) -> None:
        self.take = Slabs().take

    def give(self, value: Any) -> Any:
        return value

    def take_back(self, name: str, value: Any) -> None:
        pass


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
    """Tells `progress` of each layer that is given. names: of all; nbytes: of a name's tensor, asked for where there is
    somebody to tell."""

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

    def __init__(
        self,
        names: Sequence[str],
        begin: Callable[[Memory], Pairs],
        lent: Callable[[], Memory],
        memory: Callable[[], Memory] = Owned,
    ) -> None:
        """memory: called for each loop. lent: what is that of `borrowed`; raises InvalidConfig where nothing is."""
        self._names, self._begin, self._lent, self._memory = names, begin, lent, memory

    def __len__(self) -> int:
        return len(self._names)

    @property
    def names(self) -> list[str]:
        """In the order given."""
        return [*self._names]

    def borrowed(self) -> WeightStream:
        """The same pairs, of tensors that are valid until the next pair is asked for: `for name, tensor in
        loader.stream(…).borrowed()`.

        Their memory is the loader's and is used again, so that a stream of any length takes the same few buffers and no
        fresh pages. A tensor whose time is over (also by asking when there is none left) has no memory any more, and
        whatever is done with it raises InvalidConfig, which names the layer: keep `tensor.clone()`. The one that is in
        hand when a loop is left stays valid. Views of a tensor, and arrays over its memory (`tensor.numpy()`), stay
        valid as long as they are there, and their memory is not used again meanwhile: it is then theirs, and not the
        budget's. Raises InvalidConfig where the loader gives codes.
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
                del pair  # or the next one would be read while this one is still held here
        finally:
            if pairs is not None:
                pairs.close()
            waiting.shutdown(wait=False)


class Pairs:
    """One loop's pairs. `close` may be called while another thread waits for the next one, which then ends."""

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
                del value  # or the next one would be read while this one is still held here

    def close(self) -> None:
        self._stream.close()
