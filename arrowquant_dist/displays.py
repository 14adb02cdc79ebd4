"""How objects are shown: in a line, and as a table in a notebook.

Names come from strangers: long ones are shortened, and unprintable ones are escaped. A table has no script, no link and
no colours, so it is as light or dark as the notebook.
"""

from __future__ import annotations

import reprlib
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from arrowquant_dist.errors import shortened

REPR_CHARS = 400
_VALUE_CHARS = 100
_CELL = "padding:2px 12px 2px 0;overflow-wrap:anywhere"
_CELLS = {"l": f"text-align:left;{_CELL}", "r": f"text-align:right;{_CELL}"}
_TITLE = "text-align:left;font-weight:bold;padding:4px 0"


class Displayed:
    """Gives a class a repr and a table in notebooks that show its `_summary`."""

    __slots__ = ()

    @abstractmethod
    def _summary(self) -> Mapping[str, object]:
        """{name: value}, the most important first; plain values."""

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={_bounded(value)}" for name, value in self._summary().items())
        return shortened(f"{type(self).__name__}({said})", REPR_CHARS)

    def _repr_html_(self) -> str:
        rows = [
            (name.replace("_", " "), value if isinstance(value, str) else _bounded(value))
            for name, value in self._summary().items()
        ]
        return html_table(type(self).__name__, (), rows)


def html_table(title: str, headers: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> str:
    """A complete HTML table. headers: texts of the head row; empty where the first cell of each row names the second.
    align: `l` or `r` for each column; empty: all columns are aligned left."""
    head = f"<tr>{_cells(headers, align, 'th')}</tr>" if any(headers) else ""
    body = "".join(f"<tr>{_cells(row, align, 'td')}</tr>" for row in rows)
    caption = f'<caption style="{_TITLE}">{_escaped(title)}</caption>'
    return f'<table style="border-collapse:collapse;color:inherit">{caption}{head}{body}</table>'


def _cells(texts: Sequence[str], align: str, tag: str) -> str:
    sides = align or "l" * len(texts)
    cells = (
        f'<{tag} style="{_CELLS[side]}">{_escaped(text)}</{tag}>'
        for text, side in zip(texts, sides, strict=True)
    )
    return "".join(cells)


def _escaped(text: str) -> str:
    whole = shortened(str(text))
    return escape(whole if whole.isprintable() else repr(whole))


def _bounded(value: object) -> str:
    """`value` as Python shows it; long texts, lists and mappings are cut in the middle."""
    return shortened(_SHOWN.repr(value), _VALUE_CHARS)


_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = _VALUE_CHARS
_SHOWN.maxlist = _SHOWN.maxtuple = _SHOWN.maxdict = 4
_SHOWN.maxlevel = 3
