"""Rows of a benchmark, each with measurements of both sides, and how they are printed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

NOT_INSTALLED = "not installed"
_NOTHING = "–"
_HEAD = ("", "ours", "", "peer or limit", "theirs", "ratio", "target", "met")
_LEFT = {0, 2, 3}  # columns that hold words


@dataclass(frozen=True, slots=True)
class Target:
    """A limit for `ours` or, with `of_ratio`, for the ratio ours / theirs: at least `value` or, with `at_most`, at
    most."""

    value: float
    at_most: bool = False
    of_ratio: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    peer: what `theirs` was measured on, in the same unit. theirs: None if that peer is not installed.
    """

    name: str
    ours: float
    unit: str
    peer: str = ""
    theirs: float | None = None
    target: Target | None = None

    @property
    def ratio(self) -> float | None:
        return self.ours / self.theirs if self.theirs else None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None if there is no target, or no peer to compare with."""
        if self.target is None:
            return None
        measured = self.ratio if self.target.of_ratio else self.ours
        if measured is None:
            return None
        return measured <= self.target.value if self.target.at_most else measured >= self.target.value


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    rows: tuple[Row, ...]


def at_least(value: float) -> Target:
    return Target(value)


def at_most(value: float) -> Target:
    return Target(value, at_most=True)


def ratio_of(value: float) -> Target:
    """A target of at least `value` times the peer's figure."""
    return Target(value, of_ratio=True)


def render(table: Table) -> str:
    """The table with aligned columns under its title, for a terminal or a Markdown file."""
    lines = [_HEAD, *(_cells(row) for row in table.rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(_HEAD))]

    def joined(line: Iterable[str]) -> str:
        padded = (
            text.ljust(widths[k]) if k in _LEFT else text.rjust(widths[k]) for k, text in enumerate(line)
        )
        return f"| {' | '.join(padded)} |"

    rule = "|".join("-" * (width + 1) + ("-" if k in _LEFT else ":") for k, width in enumerate(widths))
    return "\n".join([table.title, "", joined(lines[0]), f"|{rule}|", *map(joined, lines[1:])])


def show(tables: Iterable[Table], out: Callable[[str], object] = print) -> None:
    """Prints each table as soon as it is made."""
    for table in tables:
        out(render(table) + "\n")


def _cells(row: Row) -> tuple[str, ...]:
    theirs = _NOTHING if not row.peer else NOT_INSTALLED if row.theirs is None else number(row.theirs)
    return (
        row.name,
        number(row.ours),
        row.unit,
        row.peer or _NOTHING,
        theirs,
        _NOTHING if row.ratio is None else f"{rate(row.ratio)}×",
        _target(row.target),
        {None: _NOTHING, True: "yes", False: "NO"}[row.met],
    )


def _target(target: Target | None) -> str:
    if target is None:
        return _NOTHING
    return f"{'≤' if target.at_most else '≥'} {target.value:g}{'×' if target.of_ratio else ''}"


def number(value: float) -> str:
    """The value with two to four digits, or more if it is just below 1, such as a cosine."""
    if value >= 1000:
        return f"{value:,.0f}"
    if value >= 100:
        return f"{value:.0f}"
    if value >= 10:
        return f"{value:.1f}"
    if 0.9 <= value < 1:
        return f"{value:.5f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def rate(value: float) -> str:
    """A rate or ratio with two to four digits."""
    return f"{value:.2f}" if 0.1 <= value < 1 else number(value)
