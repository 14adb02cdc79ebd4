"""Waiting for what another thread or process does. The only deadline is pytest's own, which every test has."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from types import FrameType

_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05  # seconds between two looks: more the longer it takes


def until(happened: Callable[[], object]) -> None:
    """Returns once `happened` says something true. It may raise where that can no longer come about."""
    pause = _FIRST_PAUSE
    while not happened():
        time.sleep(pause)
        pause = min(1.2 * pause, _LONGEST_PAUSE)


def waits_for_a_result(thread: int) -> bool:
    """Whether the thread of this ident is in Future.result, or in concurrent.futures.wait, and asleep."""
    frame: FrameType | None = sys._current_frames()[thread]
    is_asleep = frame is not None and frame.f_code is threading.Condition.wait.__code__
    while frame is not None and frame.f_code not in (Future.result.__code__, wait.__code__):
        frame = frame.f_back
    return is_asleep and frame is not None
