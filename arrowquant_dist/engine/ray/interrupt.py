"""Turns Ctrl-C and SIGTERM into requests to be checked for, instead of exceptions in the middle of Ray's calls."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self


class Interrupts:
    """`with Interrupts() as interrupts`: SIGTERM, and SIGINT and SIGHUP if Python's own handlers are in place, set
    `number`; a second signal raises KeyboardInterrupt. The previous handlers are restored at the end. Outside of the
    main thread nothing is changed."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                self._before[number] = signal.getsignal(number)
        return self

    def take(self) -> None:
        """Installs the handlers; called after ray.init, which takes SIGTERM for itself."""
        for number, before in self._before.items():
            if number == signal.SIGTERM or before is signal.default_int_handler:
                signal.signal(number, self._ask)

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before if before is not None else signal.SIG_DFL)

    def check(self) -> None:
        """Raises KeyboardInterrupt if a signal has arrived."""
        if self.number is not None:
            raise KeyboardInterrupt

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if self.number is not None:
            raise KeyboardInterrupt
        self.number = number
