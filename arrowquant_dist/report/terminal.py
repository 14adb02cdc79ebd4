"""Tables on the terminal, with rich. No text is taken for markup, and no control character gets through."""

from __future__ import annotations

from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from arrowquant_dist.reduce.figures import Report
from arrowquant_dist.report import view
from arrowquant_dist.report.text import printable
from arrowquant_dist.report.view import Table

_UNFOLDED = 400


def console(file: TextIO) -> Console:
    """A console on `file` that draws text as it is; into a pipe or file, lines are not folded."""
    width = None if file.isatty() else _UNFOLDED
    return Console(file=file, width=width, markup=False, emoji=False, highlight=False)


def print_report(out: Console, report: Report) -> None:
    """The essentials, sizes by layer type, the cosine's distribution, and what it does not say."""
    print_table(out, view.essentials(report))
    print_table(out, view.layer_types(report))
    if report.accuracy is not None:
        print_table(out, view.distribution(report))
        out.print(Text(view.WEIGHT_COSINE_NOTE, style="dim"))
    for note in report.notes:
        out.print(Text(f"note: {printable(note)}"))


def print_table(out: Console, table: Table) -> None:
    """A titled table; two columns without headers are drawn as facts."""
    headed = any(table.headers)
    drawn = RichTable(
        title=Text(table.title),
        title_justify="left",
        show_header=headed,
        box=box.SIMPLE_HEAD if headed else box.SIMPLE,
    )
    for header, side in zip(table.headers, table.align, strict=True):
        drawn.add_column(Text(printable(header)), justify="right" if side == "r" else "left", overflow="fold")
    for row in table.rows:
        drawn.add_row(*(Text(printable(cell)) for cell in row))
    out.print(drawn)
