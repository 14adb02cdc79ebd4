"""Tables that fit the width of a terminal; for pipes and files, plain aligned lines of any width.

Text is never interpreted as markup, and control characters in names are escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import TextIO

from arrowquant_dist.errors import counted
from arrowquant_dist.reduce.figures import ReportFigures
from arrowquant_dist.report import view
from arrowquant_dist.report.evaluated import evaluation_table
from arrowquant_dist.report.evaluation import Evaluation
from arrowquant_dist.report.fit import GAP, fitted
from arrowquant_dist.report.text import NO_BREAK, folded, folded_command, printable, terminal_width, width_of
from arrowquant_dist.report.view import Table

# A line of YAML with a comment, which a # within quotes is not.
_COMMENTED = re.compile(r"""(?P<value>(?P<indent> *)(?:(?:[^#'"]|'[^']*'|"[^"]*")* )?)# (?P<comment>.*)""")


def print_report(out: TextIO, report: ReportFigures, evaluations: Sequence[Evaluation] = ()) -> None:
    """Prints the essentials, the sizes by layer type, the distribution of the weight cosine and what that does not
    tell; then the evaluations of the outputs, if there are any, and the notes."""
    print_table(out, view.essentials(report))
    print_table(out, view.layer_types(report))
    if report.accuracy is not None:
        print_table(out, view.distribution(report))
        print_text(out, view.WEIGHT_COSINE_NOTE)
        if evaluations:
            out.write("\n")
    for evaluation in evaluations:
        print_table(out, evaluation_table(evaluation))
    for note in report.notes:
        print_text(out, f"note: {note}")


def print_table(out: TextIO, table: Table) -> None:
    """Prints a table with its title. A table without headers is a list of facts."""
    if not out.isatty():
        out.writelines(f"{line}\n" for line in _plain_lines(table))
        return
    width = terminal_width(out)
    for panel in fitted(table, width):
        out.writelines(f"{line}\n" for line in (*folded(panel.title, width), *_drawn_lines(panel)) if line)
        out.write("\n")


def print_text(out: TextIO, text: str) -> None:
    """Prints one paragraph, on a terminal wrapped at words to its width."""
    lines = folded(printable(text), terminal_width(out)) if out.isatty() else [printable(text)]
    out.writelines(f"{line}\n" for line in lines)


def print_notes(out: TextIO, notes: Sequence[str], lines: int) -> None:
    """Prints notes in full, but on a terminal only the beginning of each: a line per note and at most `lines` lines."""
    if not out.isatty():
        for note in notes:
            print_text(out, f"note: {note}")
        return
    width = terminal_width(out)
    shown = notes if len(notes) <= lines else notes[: lines - 1]
    out.writelines(f"{_beginning(printable(f'note: {note}'), width)}\n" for note in shown)
    if len(notes) > len(shown):
        out.write(f"and {counted(len(notes) - len(shown), 'more note')} in the report\n")


def _beginning(text: str, width: int) -> str:
    """As many words of `text` as fit into `width`, with an ellipsis if some are left out."""
    lines = folded(text, width)
    if len(lines) == 1:
        return lines[0]
    mark = " …"
    return folded(text, width - len(mark))[0] + mark


def print_command(out: TextIO, what: str, words: Sequence[str]) -> None:
    """Prints the command `what: words` to be copied. In a terminal that is too narrow for it, lines end with a
    backslash, so that the shell reads them as one."""
    width = terminal_width(out) if out.isatty() else None
    lines = folded_command(words, width, begin=f"{what}: ")
    out.writelines(f"{printable(line)}\n" for line in lines)


def print_yaml(out: TextIO, text: str) -> None:
    """Prints YAML as it is. On a terminal that is too narrow, comments are folded; those behind a value move above it,
    so that it is still the same YAML."""
    width = terminal_width(out) if out.isatty() else None
    lines = text.splitlines()
    if width is not None:
        lines = [each for line in lines for each in _folded_yaml(line, width)]
    out.write("".join(f"{line}\n" for line in lines))


def _folded_yaml(line: str, width: int) -> list[str]:
    found = _COMMENTED.fullmatch(line)
    if found is None or width_of(line) <= width:
        return [line]
    begin = f"{found['indent']}# "
    value = found["value"].rstrip()
    comment = [f"{begin}{part}" for part in folded(found["comment"], width - len(begin))]
    return [*comment, value] if value else comment


def _drawn_lines(table: Table) -> Iterator[str]:
    """The lines of a table for a terminal. Its cells must be printable and must fit."""
    headed = [table.headers] if any(table.headers) else []
    widths = [max(map(width_of, column)) for column in zip(*headed, *table.rows, strict=True)]
    for row in headed:
        yield from _lines(row, widths, table.align)
        yield GAP + GAP.join("─" * width for width in widths)
    for row in table.rows:
        yield from _lines(row, widths, table.align)


def _lines(row: Sequence[str], widths: Sequence[int], align: str) -> Iterator[str]:
    for cells in zip_longest(*(cell.split("\n") for cell in row), fillvalue=""):
        yield GAP.join(("", *_aligned(cells, widths, align))).rstrip()


def _plain_lines(table: Table) -> Iterator[str]:
    headed = [table.headers] if any(table.headers) else []
    rows = [tuple(printable(cell).replace(NO_BREAK, " ") for cell in row) for row in (*headed, *table.rows)]
    widths = [max(map(width_of, column)) for column in zip(*rows, strict=True)]
    yield table.title
    for row in rows:
        yield GAP.join(("", *_aligned(row, widths, table.align))).rstrip()
    yield ""


def _aligned(row: Iterable[str], widths: Iterable[int], align: str) -> Iterator[str]:
    for cell, width, side in zip(row, widths, align, strict=True):
        space = " " * (width - width_of(cell))
        yield space + cell if side == "r" else cell + space
