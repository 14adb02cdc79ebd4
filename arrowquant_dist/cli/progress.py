"""How far a run is, on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TextIO

from arrowquant_dist.report import text

_FIRST_INTERVAL_SECONDS = 5.0
_LONGEST_INTERVAL_SECONDS = 300.0


class Progress(Protocol):
    """What is done of a run's source; resumed work counts as done from the first event on."""

    @property
    def done_nbytes(self) -> int: ...
    @property
    def total_nbytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Bytes:
    """Progress that is counted in bytes alone."""

    done_nbytes: int
    total_nbytes: int


OnEvent = Callable[[Progress], None]


@contextmanager
def shown_progress(out: TextIO, verb: str) -> Iterator[OnEvent]:
    """A callback that shows events on `out`; may be called from any thread. verb: `quantize`."""
    if out.isatty():
        with _bar(out, verb) as on_event:
            yield on_event
    else:
        lines = ProgressLines(out, verb)
        yield lines.on_event
        lines.finish()


@contextmanager
def _bar(out: TextIO, verb: str) -> Iterator[OnEvent]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(file=out)) as bars:
        task = bars.add_task(verb, total=None)

        def on_event(event: Progress) -> None:
            bars.update(task, completed=event.done_nbytes, total=event.total_nbytes)

        yield on_event


@dataclass(slots=True)
class ProgressLines:
    """Plain lines: the first after 5 s, then at growing intervals of at most 5 min, and one at the end.

    A log of a run of hours stays short, and one of a minute still says something.
    """

    out: TextIO
    verb: str
    clock: Callable[[], float] = time.monotonic
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _first: tuple[float, int] | None = None  # clock and bytes of the first event: what the rate counts from
    _last: Progress | None = None
    _next: float = 0.0

    def on_event(self, event: Progress) -> None:
        with self._lock:
            now = self.clock()
            if self._first is None:
                self._first, self._next = (now, event.done_nbytes), now + _FIRST_INTERVAL_SECONDS
            self._last = event
            if now >= self._next:
                self._write(event, now)
                interval = (now - self._first[0]) / 10
                self._next = now + min(max(interval, _FIRST_INTERVAL_SECONDS), _LONGEST_INTERVAL_SECONDS)

    def finish(self) -> None:
        """The last line."""
        with self._lock:
            if self._last is not None:
                self._write(self._last, self.clock())

    def _write(self, event: Progress, now: float) -> None:
        done, total = event.done_nbytes, event.total_nbytes
        share = text.share(done / total) if total else text.share(1.0)
        self.out.write(
            f"{self.verb}: {text.nbytes(done)} of {text.nbytes(total)}, {share}{self._pace(event, now)}\n"
        )
        self.out.flush()

    def _pace(self, event: Progress, now: float) -> str:
        began, done_before = self._first or (now, 0)
        done, seconds = event.done_nbytes - done_before, now - began
        if done <= 0 or seconds <= 0:
            return ""
        rate, left = done / seconds, event.total_nbytes - event.done_nbytes
        return f", {text.nbytes(rate)}/s" + (f", {text.seconds(left / rate)} left" if left > 0 else "")
