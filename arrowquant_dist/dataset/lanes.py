"""Threads for the lanes of a load that somebody waits for, kept from one load to the next."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

LANE_THREAD_NAME = "arrowquant-lane"
MOST_THREADS = 32  # what is more at once, the threads that wait do themselves
_Lane = Callable[[], None]


class LaneThreads:
    """Runs lanes side by side: the first in the thread that asks, the others in threads that stay. Thread-safe.

    To begin threads and to end them took 0.14 ms a load, and takes 0.02 so. There are about as many as were ever busy
    at once; they end with `close`, or when nobody has this object any more. Once it is closed, and in a child that was
    forked meanwhile, which has none of the threads and perhaps a lock that stays shut, a call has threads of its own.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._is_closed = False

    def run(self, lanes: Sequence[_Lane]) -> None:
        """Returns when no lane runs any more. Raises what the first of those raised that failed."""
        if len(lanes) < 2:
            for lane in lanes:
                lane()
            return
        futures = self._submit(lanes[1:])
        if futures is None:
            with ThreadPoolExecutor(len(lanes) - 1, LANE_THREAD_NAME) as pool:
                _run(lanes, [pool.submit(lane) for lane in lanes[1:]])
        else:
            _run(lanes, futures)

    def close(self) -> None:
        """Ends the threads, each with the lane that it is at."""
        if self._pid != os.getpid():
            return
        with self._lock:
            self._is_closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()

    def _submit(self, lanes: Sequence[_Lane]) -> list[Future[None]] | None:
        """None where there are no threads that stay."""
        if self._pid != os.getpid():
            return None
        with self._lock:  # no pool is shut down in the midst of this
            if self._is_closed:
                return None
            if self._pool is None:
                self._pool = ThreadPoolExecutor(MOST_THREADS, LANE_THREAD_NAME)
            return [self._pool.submit(lane) for lane in lanes]


def _run(lanes: Sequence[_Lane], futures: Sequence[Future[None]]) -> None:
    """futures: of all lanes but the first. What no thread has begun by then is done here."""
    try:
        lanes[0]()
        for lane, future in zip(lanes[1:], futures, strict=True):
            if future.cancel():
                lane()
            else:
                future.result()
    finally:
        # a lane that still ran would write into memory that is the caller's; cancelled ones never run
        wait([future for future in futures if not future.cancel()])
