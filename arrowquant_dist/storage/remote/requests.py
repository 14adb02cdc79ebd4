"""Runs requests on fsspec's event loop: a limited number at a time, repeated while their failure may pass."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from arrowquant_dist.config import Transfer
from arrowquant_dist.storage.remote.faults import may_pass
from arrowquant_dist.storage.traffic import Traffic

T = TypeVar("T")
LONGEST_WAIT = 30.0
_SECONDS_TO_CANCEL = 10.0
_SECONDS_UNHEARD = 0.5


class Requests:
    """Runs requests. Thread-safe: `run` and `submit` are called from any thread except the loop's; coroutines run on
    the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, transfer: Transfer, traffic: Traffic) -> None:
        self._loop, self._transfer, self._traffic = loop, transfer, traffic
        self._slots = asyncio.Semaphore(transfer.requests)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`. If the caller is interrupted, the work is cancelled, and has ended on return."""
        ended = threading.Event()
        future = asyncio.run_coroutine_threadsafe(_signalled(work, ended), self._loop)
        try:
            # Not one long wait: a signal delivered to another thread does not wake this one, so Ctrl-C would be missed.
            while not wait([future], timeout=_SECONDS_UNHEARD).done:
                pass
            return future.result()
        except BaseException:
            future.cancel()
            ended.wait(_SECONDS_TO_CANCEL)
            raise

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    @property
    def is_own_thread(self) -> bool:
        """Whether this is the loop's thread, in which `run` would wait for itself; a finalizer may run there."""
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    async def persist(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of the first attempt that succeeds. Raises an error that cannot pass, or the last one."""
        for pause in waits(self._transfer):
            try:
                async with self._slots:
                    return await attempt()
            except Exception as error:
                if not may_pass(error):
                    raise
            self._traffic.add(retries=1)
            await asyncio.sleep(pause)
        async with self._slots:
            return await attempt()


def waits(transfer: Transfer) -> Iterable[float]:
    """Seconds before each repetition: `backoff`, doubled each time up to 30 s, times a random factor between 0.5 and 1.

    The eight waits of the default settings take 31 to 62 s, so that a server may restart meanwhile.
    """
    for attempt in range(transfer.retries):
        longest = min(LONGEST_WAIT, transfer.backoff * 2.0**attempt)
        yield longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


async def side_by_side(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results. The first error cancels the other coroutines, which have ended when it is raised."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in work]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def _signalled(work: Coroutine[Any, Any, T], ended: threading.Event) -> T:
    try:
        return await work
    finally:
        ended.set()
