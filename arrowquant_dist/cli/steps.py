"""How far an evaluation or a calibration is, on stderr: a bar a step on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO, cast

from arrowquant_dist.cli.progress import bar_room
from arrowquant_dist.cli.streams import Unheard
from arrowquant_dist.cli.telling import PLAIN, Telling, json_line
from arrowquant_dist.report import text
from arrowquant_dist.report.text import terminal_width

if TYPE_CHECKING:
    from arrowquant_dist.texts.steps import StepCallback, TextsStep

_INTERVAL_SECONDS = 10.0


@contextmanager
def shown_steps(out: TextIO, command: str, telling: Telling = PLAIN) -> Iterator[StepCallback]:
    """A callback that shows steps of a command on `out`, as long as that can be written."""
    heard, form = cast("TextIO", Unheard(out)), telling.form(out)
    if form != "bar":
        lines = JsonStepLines if form == "json" else StepLines
        yield lines(heard, command=command).show if form != "none" else _say_nothing
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(file=heard, width=terminal_width(out))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_room(console.width)),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        tasks = {}

        def show(step: TextsStep) -> None:
            if step.name not in tasks:
                tasks[step.name] = bars.add_task(step.name, total=step.total)
            bars.update(tasks[step.name], completed=step.done, total=step.total)

        yield show


class StepLines:
    """A line when a step begins, every ten seconds of it, and when it is done."""

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
        form = text.nbytes if step.unit == "bytes" else str
        unit = "" if step.unit == "bytes" else f" {step.unit}"
        return f"{self.command}: {step.name}, {form(step.done)} of {form(step.total)}{unit}"


class JsonStepLines(StepLines):
    """The same moments, a JSON document a line."""

    def line(self, step: TextsStep) -> str:
        values = {"step": step.name, "done": step.done, "total": step.total, "unit": step.unit}
        return json_line("progress", {"command": self.command, **values})


def _say_nothing(step: TextsStep) -> None:
    pass
