"""Bars on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from arrowquant_dist.progress.forms import is_terminal

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn


def bars(out: TextIO, width: int, *beside: ProgressColumn) -> Progress:
    """Draws on `out`, a terminal of `width` columns: a name, a bar, the percentage, and the columns in `beside`.

    What is printed meanwhile appears above it, if stdout is a terminal; otherwise it goes where it would go anyway.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_room(width)), TaskProgressColumn(), *beside)
    console = Console(file=out, width=width, force_jupyter=False)
    return Progress(*columns, console=console, redirect_stdout=is_terminal(sys.stdout))


def bar_room(width: int) -> int:
    """Width of the bar on a terminal of `width` columns; the text beside it says more, so it gets the most room."""
    return 20 if width >= 100 else 10 if width >= 60 else 4


def said_column(said: Callable[[], str]) -> ProgressColumn:
    """A column that calls `said` at each refresh, so that rate and time left are updated while nothing happens."""
    from rich.progress import ProgressColumn
    from rich.table import Column
    from rich.text import Text

    class Said(ProgressColumn):
        def render(self, task: Any) -> Text:  # noqa: ARG002 - rich's interface
            return Text(said())

    return Said(Column(no_wrap=True))
