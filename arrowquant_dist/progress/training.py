"""Shows how far a training has come: a bar on a terminal or in a notebook, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol, TextIO, cast

from arrowquant_dist.progress.bar import bars, said_column
from arrowquant_dist.progress.forms import TellingForm, json_line
from arrowquant_dist.progress.notebook import Bars
from arrowquant_dist.progress.unheard import Unheard
from arrowquant_dist.reduce.ratios import finite
from arrowquant_dist.report.text import terminal_width

_INTERVAL_SECONDS = 10.0


class TrainingSteps(Protocol):
    """How far a training has come. losses: {step: loss of held-back texts after it}."""

    @property
    def step(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def losses(self) -> Mapping[int, float]: ...
    @property
    def is_done(self) -> bool: ...


ShowTraining = Callable[[TrainingSteps, float], None]  # (steps, loss of the last one)


def shown_training(out: TextIO, verb: str, form: TellingForm) -> AbstractContextManager[ShowTraining]:
    """A callback that shows steps of a training in this form, on `out` as long as that can be written. verb: the
    command, `distill`."""
    heard = cast("TextIO", Unheard(out))
    match form:
        case "none":
            return nullcontext(lambda *_: None)
        case "bar":
            return _bar(heard, verb)
        case "notebook":
            return _cell(verb)
        case "json":
            return nullcontext(TrainingLines(heard, verb, _json).show)
        case "lines":
            return nullcontext(TrainingLines(heard, verb, _line).show)


class TrainingLines:
    """A line every ten seconds, and at the end."""

    def __init__(
        self,
        out: TextIO,
        verb: str,
        line: Callable[[str, TrainingSteps, float], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._out, self._verb, self._line, self._clock = out, verb, line, clock
        self._told = clock()

    def show(self, done: TrainingSteps, loss: float) -> None:
        now = self._clock()
        if now - self._told >= _INTERVAL_SECONDS or done.is_done:
            self._told = now
            self._out.write(f"{self._line(self._verb, done, loss)}\n")
            self._out.flush()


@contextmanager
def _bar(out: TextIO, verb: str) -> Iterator[ShowTraining]:
    from rich.progress import TimeRemainingColumn

    width, last = terminal_width(out), [""]
    with bars(out, width, TimeRemainingColumn(), said_column(lambda: last[0])) as drawn:
        task = drawn.add_task(verb, total=None)

        def show(done: TrainingSteps, loss: float) -> None:
            last[0] = _losses(done, loss) if width >= 80 else f"loss {loss:.4f}"
            drawn.update(task, completed=done.step, total=done.steps)

        yield show


@contextmanager
def _cell(verb: str) -> Iterator[ShowTraining]:
    drawn = Bars()
    try:
        yield lambda done, loss: drawn.show(verb, done.step / done.steps, _words(done, loss))
    finally:
        drawn.finish()


def _line(verb: str, done: TrainingSteps, loss: float) -> str:
    return f"{verb}: {_words(done, loss)}"


def _words(done: TrainingSteps, loss: float) -> str:
    return f"step {done.step} of {done.steps}, {_losses(done, loss)}"


def _losses(done: TrainingSteps, loss: float) -> str:
    return f"loss {loss:.4f}, of held-back texts {_held_back(done):.4f}"


def _json(verb: str, done: TrainingSteps, loss: float) -> str:
    values = {"command": verb, "step": done.step, "steps": done.steps}
    return json_line("progress", {**values, "loss": finite(loss), "held_back_loss": finite(_held_back(done))})


def _held_back(done: TrainingSteps) -> float:
    return done.losses[max(done.losses)]
