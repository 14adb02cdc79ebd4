"""A run's progress in a log: plain lines, or one JSON document a line."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TextIO

from arrowquant_dist.progress.forms import json_line
from arrowquant_dist.progress.rate import HowFar, RecentRate
from arrowquant_dist.progress.words import (
    compiling_words,
    done_words,
    layer_words,
    speed_words,
    worker_words,
)

_FIRST_INTERVAL_SECONDS = 5.0
_LONGEST_INTERVAL_SECONDS = 300.0


@dataclass(slots=True)
class ProgressLines:
    """Plain lines: the first after 5 s, then at growing intervals of at most 5 min, and one at the end.

    So the log of a run of hours stays short, and that of a run of a minute still says something. The kernels that are
    being compiled are reported at once, and once only.
    """

    out: TextIO
    verb: str
    clock: Callable[[], float] = time.monotonic
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _pace: RecentRate = field(default_factory=RecentRate)
    _began: float | None = None
    _last: HowFar | None = None
    _next: float = 0.0
    _compiled: set[str] = field(default_factory=set)

    def show(self, event: HowFar) -> None:
        with self._lock:
            now = self.clock()
            if self._began is None:
                self._began, self._next = now, now + _FIRST_INTERVAL_SECONDS
            self._pace.add(now, event.done_nbytes)
            self._last = event
            if event.compiling and event.compiling not in self._compiled:
                self._compiled.add(event.compiling)
                self._write_compiling(event)
            if now >= self._next:
                self._write(event, now)
                interval = (now - self._began) / 10
                self._next = now + min(max(interval, _FIRST_INTERVAL_SECONDS), _LONGEST_INTERVAL_SECONDS)

    def finish(self) -> None:
        """Writes the last line."""
        with self._lock:
            if self._last is not None:
                self._write(self._last, self.clock())

    def _write_compiling(self, event: HowFar) -> None:
        self.out.write(f"{self.verb}: {compiling_words(event)}, once on a machine\n")
        self.out.flush()

    def _write(self, event: HowFar, now: float) -> None:
        said = [
            done_words(event),
            *layer_words(event),
            *speed_words(self._pace, now, event),
            *worker_words(event),
        ]
        self.out.write(f"{self.verb}: {', '.join(said)}\n")
        self.out.flush()


@dataclass(slots=True)
class JsonLines(ProgressLines):
    """The same lines as JSON documents; figures that are not known yet are null."""

    def _write_compiling(self, event: HowFar) -> None:
        self._tell("compiling", {"command": self.verb, "kernels": event.compiling})

    def _write(self, event: HowFar, now: float) -> None:
        figures: dict[str, Any] = {
            "command": self.verb,
            "done_nbytes": event.done_nbytes,
            "total_nbytes": event.total_nbytes,
            "nbytes_per_second": self._pace.nbytes_per_second(now),
            "seconds_left": self._pace.seconds_left(now, event),
        }
        if event.total_layers:
            figures |= {"done_layers": event.done_layers, "total_layers": event.total_layers}
            figures["workers"] = event.workers_alive
        self._tell("progress", figures)

    def _tell(self, event: str, values: dict[str, Any]) -> None:
        self.out.write(f"{json_line(event, values)}\n")
        self.out.flush()
