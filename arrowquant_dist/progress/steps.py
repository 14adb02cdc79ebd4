"""Shows how far an evaluation or a calibration has come: one bar for each step on a terminal or in a notebook, a line
now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, TextIO, cast

from arrowquant_dist.progress.bar import bars
from arrowquant_dist.progress.forms import TellingForm, json_line
from arrowquant_dist.progress.notebook import Bars
from arrowquant_dist.progress.unheard import Unheard
from arrowquant_dist.report import text
from arrowquant_dist.report.text import terminal_width

if TYPE_CHECKING:
    from arrowquant_dist.texts.steps import StepCallback, TextsStep

_INTERVAL_SECONDS = 10.0


def shown_steps(out: TextIO, command: str, form: TellingForm) -> AbstractContextManager[StepCallback]:
    """A callback that shows steps of a command in this form, on `out` as long as that can be written."""
    heard = cast("TextIO", Unheard(out))
    match form:
        case "none":
            return nullcontext(_say_nothing)
        case "bar":
            return _bars(heard)
        case "notebook":
            return _cell()
        case "json":
            return nullcontext(JsonStepLines(heard, command=command).show)
        case "lines":
            return nullcontext(StepLines(heard, command=command).show)


@contextmanager
def _bars(out: TextIO) -> Iterator[StepCallback]:
    from rich.progress import TimeRemainingColumn

    with bars(out, terminal_width(out), TimeRemainingColumn()) as drawn:
        tasks = {}

        def show(step: TextsStep) -> None:
            if step.name not in tasks:
                tasks[step.name] = drawn.add_task(step.name, total=step.total)
            drawn.update(tasks[step.name], completed=step.done, total=step.total)

        yield show


@contextmanager
def _cell() -> Iterator[StepCallback]:
    drawn = Bars()
    try:
        yield lambda step: drawn.show(
            step.name, step.done / step.total if step.total else 1.0, step_words(step)
        )
    finally:
        drawn.finish()


class StepLines:
    """A line when a step begins, every ten seconds, and when it is done."""

    def __init__(
        self, out: TextIO, clock: Callable[[], float] = time.monotonic, command: str = "evaluate"
    ) -> None:
        self._out, self._clock, self.command = out, clock, command
        self._name, self._told = "", 0.0

    def show(self, step: TextsStep) -> None:
        now = self._clock()
        is_new, is_done = step.name != self._name, step.done >= step.total
        if is_new or is_done or now - self._told >= _INTERVAL_SECONDS:
            self._name, self._told = step.name, now
            self._out.write(f"{self.line(step)}\n")
            self._out.flush()

    def line(self, step: TextsStep) -> str:
        return f"{self.command}: {step.name}, {step_words(step)}"


class JsonStepLines(StepLines):
    """The same lines as JSON documents."""

    def line(self, step: TextsStep) -> str:
        values = {"step": step.name, "done": step.done, "total": step.total, "unit": step.unit}
        return json_line("progress", {"command": self.command, **values})


def step_words(step: TextsStep) -> str:
    """The amount that is done, as `25 of 400 texts`."""
    form = text.nbytes if step.unit == "bytes" else str
    unit = "" if step.unit == "bytes" else f" {step.unit}"
    return f"{form(step.done)} of {form(step.total)}{unit}"


def _say_nothing(step: TextsStep) -> None:
    pass
