"""Shows how far a run has come: a bar on a terminal or in a notebook, a line now and then elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TextIO, cast

from arrowquant_dist.progress.bar import bar_room, bars, said_column
from arrowquant_dist.progress.forms import TellingForm
from arrowquant_dist.progress.lines import JsonLines, ProgressLines
from arrowquant_dist.progress.notebook import Bars
from arrowquant_dist.progress.rate import Bytes, HowFar, RecentRate
from arrowquant_dist.progress.unheard import Unheard
from arrowquant_dist.progress.words import said_within
from arrowquant_dist.report.text import terminal_width

_PERCENT_CHARS = 4  # "100%"
_ROOM_OF_A_PAGE = 1000  # number of characters; a notebook wraps them

Show = Callable[[HowFar], None]
ShowBytes = Callable[[int, int], None]  # (bytes done, bytes in all)
ShowLayers = Callable[[int, int, str], object]  # (bytes done, bytes in all, layer)


def shown_progress(out: TextIO, verb: str, form: TellingForm) -> AbstractContextManager[Show]:
    """A callback that shows events in this form, on `out` as long as that can be written; it may be called from any
    thread. verb: the command, as `quantize`."""
    heard = cast("TextIO", Unheard(out))
    match form:
        case "none":
            return nullcontext(lambda _: None)
        case "bar":
            return _bar(heard, verb)
        case "notebook":
            return _cell(verb)
        case "json":
            return _lines(JsonLines(heard, verb))
        case "lines":
            return _lines(ProgressLines(heard, verb))


@contextmanager
def shown_bytes(out: TextIO, verb: str, form: TellingForm) -> Iterator[ShowBytes]:
    """`shown_progress` for what is counted in bytes alone."""
    with shown_progress(out, verb, form) as show:
        yield lambda done, total: show(Bytes(done, total))


@contextmanager
def shown_layers(out: TextIO, verb: str, form: TellingForm) -> Iterator[ShowLayers]:
    """`shown_bytes` for a callback that also gets a layer's name, which is not drawn."""
    with shown_bytes(out, verb, form) as show:
        yield lambda done, total, _: show(done, total)


@contextmanager
def _lines(lines: ProgressLines) -> Iterator[Show]:
    yield lines.show
    lines.finish()


@contextmanager
def _bar(out: TextIO, verb: str) -> Iterator[Show]:
    lock, pace = threading.Lock(), RecentRate()
    last: list[HowFar] = []
    width = terminal_width(out)
    beside = len(verb) + 1 + bar_room(width) + 1 + _PERCENT_CHARS + 1

    def said() -> str:
        drawn.console.width = terminal_width(out)  # its window may have another size by now
        with lock:
            room = drawn.console.width - beside
            return said_within(room, last[0], pace, time.monotonic()) if last else ""

    drawn = bars(out, width, said_column(said))
    with drawn:
        task = drawn.add_task(verb, total=None)

        def show(event: HowFar) -> None:
            with lock:
                last[:] = [event]
                pace.add(time.monotonic(), event.done_nbytes)
            drawn.update(task, completed=event.done_nbytes, total=event.total_nbytes)

        yield show
        if not last:  # nothing was left to do
            drawn.remove_task(task)


@contextmanager
def _cell(verb: str) -> Iterator[Show]:
    lock, pace, drawn = threading.Lock(), RecentRate(), Bars()

    def show(event: HowFar) -> None:
        now = time.monotonic()
        with lock:
            pace.add(now, event.done_nbytes)
            said = said_within(_ROOM_OF_A_PAGE, event, pace, now)
        drawn.show(verb, event.done_nbytes / event.total_nbytes if event.total_nbytes else 1.0, said)

    try:
        yield show
    finally:
        drawn.finish()
