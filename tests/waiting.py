"""Waits for other threads and processes. The only deadline is pytest's own, which every test has."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from types import FrameType

_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05  # seconds between two looks, growing with time


def until(happened: Callable[[], object]) -> None:
    """Returns once `happened` returns something true. `happened` may raise if that is no longer possible."""
    pause = _FIRST_PAUSE
    while not happened():
        time.sleep(pause)
        pause = min(1.2 * pause, _LONGEST_PAUSE)


@contextmanager
def interrupted(when: Callable[[], object]) -> Iterator[None]:
    """Raises Ctrl-C once in this thread within the block, when `when` returns something true and the thread waits for a
    result of concurrent.futures."""
    here, heard = threading.get_ident(), [False]

    def hear(*_: object) -> None:
        if not heard[0]:
            heard[0] = True
            raise KeyboardInterrupt

    def send() -> None:
        until(lambda: when() and _waits_for_a_result(here))
        while not heard[0]:  # a signal just before the thread falls asleep does not wake it
            signal.pthread_kill(here, signal.SIGINT)
            time.sleep(_FIRST_PAUSE)

    before = signal.signal(signal.SIGINT, hear)
    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    try:
        yield
    finally:
        sender.join()
        signal.signal(signal.SIGINT, before)


def _waits_for_a_result(thread: int) -> bool:
    frame: FrameType | None = sys._current_frames()[thread]
    is_asleep = frame is not None and frame.f_code is threading.Condition.wait.__code__
    while frame is not None and frame.f_code not in (Future.result.__code__, wait.__code__):
        frame = frame.f_back
    return is_asleep and frame is not None
