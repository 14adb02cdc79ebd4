"""Waiting for what another thread or process does. The only deadline is pytest's own, which every test has."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05  # seconds between two looks: more the longer it takes


def until(happened: Callable[[], object]) -> None:
    """Returns once `happened` says something true. It may raise where that can no longer come about."""
    pause = _FIRST_PAUSE
    while not happened():
        time.sleep(pause)
        pause = min(1.2 * pause, _LONGEST_PAUSE)


def is_waiting(thread: int) -> bool:
    """Whether the thread of this ident waits for another one: for an event or a result."""
    return sys._current_frames()[thread].f_code is threading.Condition.wait.__code__
