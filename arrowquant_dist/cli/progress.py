"""How far a run is, on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TextIO, cast

from arrowquant_dist.cli.streams import Unheard
from arrowquant_dist.cli.telling import PLAIN, Telling, json_line
from arrowquant_dist.errors import counted
from arrowquant_dist.report import text
from arrowquant_dist.report.text import terminal_width

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

_FIRST_INTERVAL_SECONDS = 5.0
_LONGEST_INTERVAL_SECONDS = 300.0
_WINDOW_SECONDS = 120.0  # what the rate is taken over
_SAMPLE_SECONDS = 1.0
_PERCENT_CHARS = 4  # "100%"
_TELLING_SECONDS, _TELLING_SHARE = 5.0, 0.01  # of work, before it says how long the rest takes


class HowFar(Protocol):
    """What is done of a command's source; resumed work counts as done from the first event on.

    total_layers: 0 where layers are not counted; then there are no workers to tell of either. compiling: what kernels
    are being compiled for, "" for nothing.
    """

    @property
    def done_nbytes(self) -> int: ...
    @property
    def total_nbytes(self) -> int: ...
    @property
    def done_layers(self) -> int: ...
    @property
    def total_layers(self) -> int: ...
    @property
    def workers_alive(self) -> int: ...
    @property
    def compiling(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Bytes:
    """HowFar, counted in bytes alone."""

    done_nbytes: int
    total_nbytes: int
    done_layers: int = 0
    total_layers: int = 0
    workers_alive: int = 0
    compiling: str = ""


Show = Callable[[HowFar], None]


@contextmanager
def shown_progress(out: TextIO, verb: str, telling: Telling = PLAIN) -> Iterator[Show]:
    """A callback that shows events on `out`, as long as that can be written; may be called from any thread. verb:
    `quantize`."""
    heard, form = cast("TextIO", Unheard(out)), telling.form(out)
    if form == "none":
        yield lambda _: None
    elif form == "bar":
        with _bar(heard, verb) as show:
            yield show
    else:
        lines = JsonLines(heard, verb) if form == "json" else ProgressLines(heard, verb)
        yield lines.show
        lines.finish()


@dataclass(slots=True)
class RecentRate:
    """How fast it goes, over the last two minutes or since the work began. Not thread-safe.

    A run of hours slows down or speeds up as workers go and come, and what is left takes as long as it takes now. What
    the first event brings was done before. Work that is lost to a retry comes off, so the rate is of what counts.

    Work begins with the last event before something is done: until then workers are waited for and kernels compiled,
    which tells nothing of what is to come. Nothing is said of the time left before it has told something itself: five
    seconds of work, and a hundredth of all of it.
    """

    _samples: deque[tuple[float, int]] = field(default_factory=deque)  # clock, bytes done
    _begin: tuple[float, int] | None = None  # of the work

    def add(self, now: float, done_nbytes: int) -> None:
        samples = self._samples
        if self._begin is None or (len(samples) < 2 and done_nbytes <= self._begin[1]):
            self._begin = now, done_nbytes
            samples.clear()
        if len(samples) > 1 and now - samples[-2][0] < _SAMPLE_SECONDS:
            samples.pop()
        samples.append((now, done_nbytes))
        while len(samples) > 2 and samples[1][0] <= now - _WINDOW_SECONDS:
            samples.popleft()

    def nbytes_per_second(self, now: float) -> float | None:
        """None where nothing was done yet."""
        if not self._samples:
            return None
        (since, before), (_, done) = self._samples[0], self._samples[-1]
        return (done - before) / (now - since) if now > since and done > before else None

    def seconds_left(self, now: float, event: HowFar) -> float | None:
        """None where all is done, or nothing says how long it takes."""
        left, rate = event.total_nbytes - event.done_nbytes, self.nbytes_per_second(now)
        if rate is None or self._begin is None or left <= 0:
            return None
        since, before = self._begin
        says_enough = event.done_nbytes - before >= _TELLING_SHARE * event.total_nbytes
        return left / rate if says_enough and now - since >= _TELLING_SECONDS else None


@dataclass(slots=True)
class ProgressLines:
    """Plain lines: the first after 5 s, then at growing intervals of at most 5 min, and one at the end.

    A log of a run of hours stays short, and one of a minute still says something. What kernels are compiled for is said
    at once, and once.
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
        """The last line."""
        with self._lock:
            if self._last is not None:
                self._write(self._last, self.clock())

    def _write_compiling(self, event: HowFar) -> None:
        self.out.write(f"{self.verb}: {_compiling(event)}, once on a machine\n")
        self.out.flush()

    def _write(self, event: HowFar, now: float) -> None:
        said = [_done(event), *_layers(event), *_speed(self._pace, now, event), *_workers(event)]
        self.out.write(f"{self.verb}: {', '.join(said)}\n")
        self.out.flush()


@dataclass(slots=True)
class JsonLines(ProgressLines):
    """The same moments, a JSON document a line; figures that nothing tells of yet are null."""

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


def _compiling(event: HowFar) -> str:
    return f"compiling kernels for {event.compiling}"


def _done(event: HowFar) -> str:
    done, total = event.done_nbytes, event.total_nbytes
    share = text.share(done / total) if total else text.share(1.0)
    return f"{text.nbytes(done)} of {text.nbytes(total)}, {share}"


def _layers(event: HowFar) -> list[str]:
    return [f"{event.done_layers} of {counted(event.total_layers, 'layer')}"] if event.total_layers else []


def _speed(pace: RecentRate, now: float, event: HowFar) -> list[str]:
    rate, left = pace.nbytes_per_second(now), pace.seconds_left(now, event)
    shown = [f"{text.nbytes(rate)}/s"] if rate is not None else []
    return [*shown, f"{text.seconds(left)} left"] if left is not None else shown


def _workers(event: HowFar) -> list[str]:
    return [counted(event.workers_alive, "worker")] if event.total_layers else []


@contextmanager
def _bar(out: TextIO, verb: str) -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    lock, pace = threading.Lock(), RecentRate()
    last: list[HowFar] = []
    console = Console(file=out, width=terminal_width(out))
    bar_width = bar_room(console.width)

    def said() -> str:
        with lock:
            beside = len(verb) + 1 + bar_width + 1 + _PERCENT_CHARS + 1
            return said_within(console.width - beside, last[0], pace, time.monotonic()) if last else ""

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width),
        TaskProgressColumn(),
        _said_column(said),
    )
    with Progress(*columns, console=console) as bars:
        task = bars.add_task(verb, total=None)

        def show(event: HowFar) -> None:
            with lock:
                last[:] = [event]
                pace.add(time.monotonic(), event.done_nbytes)
            bars.update(task, completed=event.done_nbytes, total=event.total_nbytes)

        yield show


def bar_room(width: int) -> int:
    """How wide the bar of a terminal of `width` columns is: what is said beside it tells more."""
    return 20 if width >= 100 else 10 if width >= 60 else 4


def said_within(room: int, event: HowFar, pace: RecentRate, now: float) -> str:
    """What stands beside the bar and the percent, in at most `room` characters: bytes, layers, rate, time left and
    workers, of which workers, layers, rate and bytes go in this order. The time left stays."""
    if event.compiling:
        return _compiling(event) if len(_compiling(event)) <= room else "compiling kernels"
    done = f"{text.nbytes(event.done_nbytes)} of {text.nbytes(event.total_nbytes)}"
    rate, left = pace.nbytes_per_second(now), pace.seconds_left(now, event)
    parts = {
        "bytes": [done],
        "layers": _layers(event),
        "rate": [f"{text.nbytes(rate)}/s"] if rate is not None else [],
        "left": [f"{text.seconds(left)} left"] if left is not None else [],
        "workers": _workers(event),
    }
    for gone in ("", "workers", "layers", "rate", "bytes"):
        parts.pop(gone, None)
        said = ", ".join(words for part in parts.values() for words in part)
        if len(said) <= room:
            return said
    return said


def _said_column(said: Callable[[], str]) -> ProgressColumn:
    """A column that asks at each refresh, so that rate and time left go on while nothing happens."""
    from rich.progress import ProgressColumn
    from rich.table import Column
    from rich.text import Text

    class Said(ProgressColumn):
        def render(self, task: Any) -> Text:  # noqa: ARG002 - rich's interface
            return Text(said())

    return Said(Column(no_wrap=True))
