"""Splits tables with a column for each config into parts that fit a page, also on paper."""

from __future__ import annotations

from collections.abc import Collection

from arrowquant_dist.report.view import Table

MOST_COLUMNS = 5  # largest number of configs side by side


def in_parts(table: Table, every: Collection[int]) -> tuple[Table, ...]:
    """The table itself, or several tables with its title, each with at most MOST_COLUMNS of its columns. every: indices
    of the columns that each of them repeats."""
    own = [column for column in range(len(table.headers)) if column not in every]
    if len(own) <= MOST_COLUMNS:
        return (table,)
    parts = [own[start : start + MOST_COLUMNS] for start in range(0, len(own), MOST_COLUMNS)]
    return tuple(
        _with_columns(table, f"{table.title}, {number} of {len(parts)}", sorted({*every, *part}))
        for number, part in enumerate(parts, 1)
    )


def _with_columns(table: Table, title: str, columns: list[int]) -> Table:
    return Table(
        title,
        tuple(table.headers[column] for column in columns),
        "".join(table.align[column] for column in columns),
        tuple(tuple(row[column] for column in columns) for row in table.rows),
        table.drop,
    )
