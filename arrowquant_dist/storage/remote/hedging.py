"""Second requests for stragglers: a range that takes much longer than similar ones, or than the first ones of a store
may, is requested again, and the first response counts."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar

from arrowquant_dist.storage.traffic import Traffic

T = TypeVar("T")
_REMEMBERED = 64  # number of ranges
_LEAST_KNOWN = 8  # ranges of about the same size that are needed to recognize a straggler
_TIMES = 3.0
_LEAST_SECONDS = 0.1


class RangeTimes:
    """How long ranges took recently, and after which time one of them is a straggler."""

    def __init__(self) -> None:
        self._taken: deque[tuple[int, float]] = deque(maxlen=_REMEMBERED)

    def add(self, nbytes: int, seconds: float) -> None:
        self._taken.append((nbytes, seconds))

    def patience(self, nbytes: int) -> float | None:
        """Seconds after which a range of this size is a straggler: three times the 95th percentile of the ranges of
        about this size (half to twice as large), at least 0.1. None if fewer than 8 of them are known."""
        peers = sorted(seconds for size, seconds in self._taken if nbytes <= 2 * size and size <= 2 * nbytes)
        if len(peers) < _LEAST_KNOWN:
            return None
        return max(_LEAST_SECONDS, _TIMES * peers[(len(peers) - 1) * 95 // 100])


class Hedges:
    """Makes at most `most` second requests at a time, each with a buffer of its own for the range; 0: none at all.

    Used on one event loop.
    """

    def __init__(
        self, most: int, traffic: Traffic, pace: RangeTimes | None = None, patience: float | None = None
    ) -> None:
        """patience: seconds that a range may take before usual times are known; None: no limit."""
        self._most, self._traffic, self._pace = most, traffic, pace or RangeTimes()
        self._patience = patience
        self._at_work = 0

    async def read(self, attempt: Callable[[memoryview], Awaitable[T]], view: memoryview) -> T:
        """The result of the first attempt that succeeds, with `view` filled by it. No attempt is at work afterwards."""
        if not self._most:
            return await attempt(view)
        begun = asyncio.get_running_loop().time()
        first = asyncio.ensure_future(attempt(view))
        try:
            usual = self._pace.patience(len(view))
            await asyncio.wait([first], timeout=self._patience if usual is None else usual)
            if first.done() or self._at_work >= self._most:
                result = await first
            else:
                result = await self._with_a_second(first, attempt, view)
        finally:
            await _ended(first)
        self._pace.add(len(view), asyncio.get_running_loop().time() - begun)
        return result

    async def _with_a_second(
        self, first: asyncio.Future[T], attempt: Callable[[memoryview], Awaitable[T]], view: memoryview
    ) -> T:
        """Reads into a separate buffer: what is left of the first attempt must never overwrite the second's bytes."""
        self._at_work += 1
        self._traffic.add(hedged=1)
        spare = memoryview(bytearray(len(view)))
        second = asyncio.ensure_future(attempt(spare))
        try:
            await asyncio.wait([first, second], return_when=asyncio.FIRST_COMPLETED)
            if second.done() and not second.exception() and not _succeeded(first):
                await _ended(first)
                view[:] = spare
                return second.result()
            if first.done() and first.exception() and not second.done():
                await asyncio.wait([second])
                if not second.exception():
                    view[:] = spare
                    return second.result()
            return await first
        finally:
            await _ended(second)
            self._at_work -= 1


def _succeeded(future: asyncio.Future[T]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


async def _ended(future: asyncio.Future[T]) -> None:
    """Cancels the future if it is at work, and returns when it has ended."""
    future.cancel()
    await asyncio.gather(future, return_exceptions=True)
