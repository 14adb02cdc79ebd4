"""Fits tables into the width of a terminal, without breaking numbers or words.

If a table is too wide, names are first shortened in the middle and prose is wrapped. Then columns are dropped, in the
order that the table gives. A table that is still too wide is split into several, each with the first column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from arrowquant_dist.report.text import (
    NO_BREAK,
    LayerName,
    folded,
    printable,
    shortened_names,
    shortened_word,
    unbreakable,
    width_of,
)
from arrowquant_dist.report.view import Table

GAP = "  "
_NAME_SHARE = 0.45  # of the terminal; names are narrowed further only once no other column can be dropped
_LEAST_NAME = 16
_LEAST_PROSE = 12


@dataclass(frozen=True, slots=True)
class ColumnWidth:
    """Widths of a column in characters. widest: width without any change. comfortable: width to which it is narrowed
    before columns are dropped. least: smallest possible width."""

    widest: int
    comfortable: int
    least: int


def fitted(table: Table, width: int) -> tuple[Table, ...]:
    """`table` as one table, or as several that each have its first column, whose lines have at most `width` characters.

    The cells of the result are printable and may have several lines.
    """
    made = _printable(table)
    if not any(made.headers):
        return (_facts(made, width),)
    while True:
        columns = _columns(made, width)
        if _total(column.comfortable for column in columns) <= width:
            return (_narrowed(made, columns, width),)
        gone = next((header for header in made.drop if header in made.headers), None)
        if gone is None:
            break
        made = _without(made, gone)
    return tuple(_narrowed(panel, _columns(panel, width), width) for panel in _panels(made, columns, width))


def _total(widths: object) -> int:
    taken = [len(GAP) + width for width in widths]  # type: ignore[attr-defined]
    return sum(taken)


def _printable(table: Table) -> Table:
    rows = tuple(
        tuple(LayerName(printable(cell)) if isinstance(cell, LayerName) else printable(cell) for cell in row)
        for row in table.rows
    )
    return replace(table, headers=tuple(map(printable, table.headers)), rows=rows)


def _facts(table: Table, width: int) -> Table:
    """Fits a list of facts: labels are unchanged, and values are wrapped beside them. Long words in values, such as
    paths, are shortened."""
    label = max((width_of(row[0]) for row in table.rows), default=0)
    room = max(width - label - 2 * len(GAP), _LEAST_NAME)
    rows = tuple((name, _fact(value, room)) for name, value in table.rows)
    return replace(table, rows=rows)


def _fact(value: str, width: int) -> str:
    return shortened_word(value, width) if isinstance(value, LayerName) else _cell(value, width)


def _cell(text: str, width: int) -> str:
    """`text` wrapped at words; long words are shortened in the middle."""
    words = [shortened_word(word, width) for word in unbreakable(text).split(" ")]
    return "\n".join(folded(" ".join(words), width))


def _columns(table: Table, width: int) -> list[ColumnWidth]:
    cells = zip(*table.rows, strict=True) if table.rows else ((),) * len(table.headers)
    return [
        _column(header, side, of_one, width)
        for header, side, of_one in zip(table.headers, table.align, cells, strict=True)
    ]


def _column(header: str, side: str, cells: Sequence[str], width: int) -> ColumnWidth:
    header_words = [
        _LEAST_NAME if _is_path(word) else width_of(word) for word in unbreakable(header).split(" ")
    ]
    head = max(header_words, default=0)
    widest = max(map(width_of, (header, *cells)))
    if any(isinstance(cell, LayerName) for cell in cells):
        comfortable, least = max(int(width * _NAME_SHARE), _LEAST_NAME), _LEAST_NAME
        return ColumnWidth(widest, max(head, min(widest, comfortable)), max(head, min(widest, least)))
    if side == "l":
        longest = max((width_of(word) for cell in cells for word in unbreakable(cell).split(" ")), default=0)
        comfortable = min(widest, max(longest, head, _LEAST_PROSE))
        return ColumnWidth(widest, comfortable, max(longest, head))
    least = max((head, *map(width_of, cells)))
    return ColumnWidth(widest, least, least)


def _is_path(word: str) -> bool:
    return "/" in word and width_of(word) > _LEAST_NAME


def _narrowed(table: Table, columns: Sequence[ColumnWidth], width: int) -> Table:
    """Makes columns as wide as there is room for. All get their comfortable width, or else the least; the room that is
    left is given to the columns from left to right."""
    is_comfortable = _total(column.comfortable for column in columns) <= width
    widths = [column.comfortable if is_comfortable else column.least for column in columns]
    spare = width - _total(widths)
    for index, column in enumerate(columns):
        more = min(max(spare, 0), column.widest - widths[index])
        widths[index] += more
        spare -= more
    headers = tuple(_cell(header, own) for header, own in zip(table.headers, widths, strict=True))
    by_column = [
        _narrowed_cells(cells, own) for cells, own in zip(zip(*table.rows, strict=True), widths, strict=False)
    ]
    return replace(table, headers=headers, rows=tuple(zip(*by_column, strict=True)))


def _narrowed_cells(cells: Sequence[str], width: int) -> list[str]:
    if all(width_of(cell) <= width for cell in cells):
        return [cell.replace(NO_BREAK, " ") for cell in cells]
    if any(isinstance(cell, LayerName) for cell in cells):
        return shortened_names(cells, width)
    return [_cell(cell, width) for cell in cells]


def _without(table: Table, header: str) -> Table:
    gone = table.headers.index(header)

    def left(values: tuple[str, ...]) -> tuple[str, ...]:
        return values[:gone] + values[gone + 1 :]

    return Table(
        table.title,
        left(table.headers),
        table.align[:gone] + table.align[gone + 1 :],
        tuple(map(left, table.rows)),
        table.drop,
    )


def _panels(table: Table, columns: Sequence[ColumnWidth], width: int) -> list[Table]:
    """Splits a table into tables of the first column and as many of the others as there is room for, at least one."""
    groups: list[list[int]] = [[]]
    for index in range(1, len(columns)):
        taken = [columns[0].least, *(columns[other].least for other in (*groups[-1], index))]
        if groups[-1] and _total(taken) > width:
            groups.append([])
        groups[-1].append(index)
    return [
        _only(table, [0, *group], title=table.title if not number else "")
        for number, group in enumerate(groups)
    ]


def _only(table: Table, columns: Sequence[int], title: str) -> Table:
    return Table(
        title,
        tuple(table.headers[index] for index in columns),
        "".join(table.align[index] for index in columns),
        tuple(tuple(row[index] for index in columns) for row in table.rows),
    )
