"""Ctrl-C and SIGTERM as something that is asked for, not as an exception out of the middle of Ray's own calls."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self


class Interrupts:
    """`with Interrupts() as interrupts`: SIGTERM, and SIGINT and SIGHUP where they are Python's own, set `number`; a
    second one raises KeyboardInterrupt. What handled them before does so again afterwards. Outside of the main thread
    nothing is changed."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                self._before[number] = signal.getsignal(number)
        return self

    def take(self) -> None:
        """From now on; after ray.init, which takes SIGTERM for itself."""
        for number, before in self._before.items():
            if number == signal.SIGTERM or before is signal.default_int_handler:
                signal.signal(number, self._ask)

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before if before is not None else signal.SIG_DFL)

    def check(self) -> None:
        """KeyboardInterrupt if one was asked for."""
        if self.number is not None:
            raise KeyboardInterrupt

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if self.number is not None:
            raise KeyboardInterrupt
        self.number = number
