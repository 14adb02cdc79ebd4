"""Tables for the terminal, drawn with rich; plain aligned lines for pipes, files and very long tables.

No text is taken for markup, and no control character of a name gets through.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

from arrowquant_dist.reduce.figures import Report
from arrowquant_dist.report import view
from arrowquant_dist.report.evaluated import evaluation_table
from arrowquant_dist.report.evaluation import Evaluation
from arrowquant_dist.report.text import printable
from arrowquant_dist.report.view import Table

_DRAWN_ROWS = 1000  # rich takes a third of a millisecond a row
_ANY_WIDTH = 100_000


def print_report(out: TextIO, report: Report, evaluations: Sequence[Evaluation] = ()) -> None:
    """The essentials, sizes by layer type, the cosine's distribution, and what it does not say; then what does, where
    the dataset was evaluated."""
    print_table(out, view.essentials(report))
    print_table(out, view.layer_types(report))
    if report.accuracy is not None:
        print_table(out, view.distribution(report))
        print_text(out, view.WEIGHT_COSINE_NOTE)
    for evaluation in evaluations:
        print_table(out, evaluation_table(evaluation))
    for note in report.notes:
        print_text(out, f"note: {note}")


def print_table(out: TextIO, table: Table) -> None:
    """A titled table; one without headers is a list of facts."""
    if not (out.isatty() and len(table.rows) <= _DRAWN_ROWS and _draw(out, table)):
        out.writelines(f"{line}\n" for line in _plain_lines(table))


def print_text(out: TextIO, text: str) -> None:
    """One paragraph; folded at words by a terminal's width."""
    if not out.isatty():
        out.write(f"{printable(text)}\n")
        return
    from rich.console import Console
    from rich.text import Text

    Console(file=out).print(Text(printable(text)))


def _draw(out: TextIO, table: Table) -> bool:
    """False, and nothing drawn, where columns are too wide for the terminal: it folds whole lines better than rich does
    cells, which tears names of layers into pieces. Facts are folded in their cells."""
    from rich import box
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table as Drawn
    from rich.text import Text

    headed = any(table.headers)
    drawn = Drawn(
        title=Text(table.title),
        title_justify="left",
        show_header=headed,
        box=box.SIMPLE_HEAD if headed else box.SIMPLE,
    )
    for header, side in zip(table.headers, table.align, strict=True):
        drawn.add_column(Text(printable(header)), justify="right" if side == "r" else "left", overflow="fold")
    for row in table.rows:
        drawn.add_row(*(Text(printable(cell)) for cell in row))
    console = Console(file=out)
    if headed:
        unbounded = console.options.update(max_width=_ANY_WIDTH)
        if Measurement.get(console, unbounded, drawn).maximum > console.width:
            return False
    console.print(drawn)
    return True


def _plain_lines(table: Table) -> Iterator[str]:
    headed = [table.headers] if any(table.headers) else []
    rows = [tuple(map(printable, row)) for row in (*headed, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield table.title
    for row in rows:
        yield "  ".join(("", *_aligned(row, widths, table.align))).rstrip()
    yield ""


def _aligned(row: Iterable[str], widths: Iterable[int], align: str) -> Iterator[str]:
    for cell, width, side in zip(row, widths, align, strict=True):
        yield cell.rjust(width) if side == "r" else cell.ljust(width)
