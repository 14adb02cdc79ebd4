"""Progress in a notebook: one bar for each task, all in one place of the cell's output.

It is displayed once and then updated in a way that all front ends of Jupyter support; no widgets are needed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from html import escape
from typing import Any

_INTERVAL_SECONDS = 0.2
_ROW = "display:flex;gap:1em;align-items:center;font-variant-numeric:tabular-nums"


class Bars:
    """Bars with a name, the finished part and a text, drawn at most five times a second, and at the end.

    share: finished part, from 0 to 1; None while it is not known. Thread-safe.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._rows: dict[str, tuple[float | None, str]] = {}
        self._handle: Any = None
        self._next = 0.0

    def show(self, what: str, share: float | None, said: str) -> None:
        with self._lock:
            is_new = what not in self._rows
            self._rows[what] = share, said
            if is_new or self._clock() >= self._next:
                self._draw()

    def finish(self) -> None:
        """Draws the final state."""
        with self._lock:
            if self._rows:
                self._draw()

    def _draw(self) -> None:
        from IPython.display import display

        drawn = Drawn(dict(self._rows))
        if self._handle is None:
            self._handle = display(drawn, display_id=True)
        else:
            self._handle.update(drawn)
        self._next = self._clock() + _INTERVAL_SECONDS


class Drawn:
    """The bars at one moment: HTML for notebooks, lines for consoles."""

    def __init__(self, rows: dict[str, tuple[float | None, str]]) -> None:
        self._rows = rows

    def __repr__(self) -> str:
        return "\n".join(
            ", ".join(word for word in (f"{what}: {_percent(share)}", said) if word)
            for what, (share, said) in self._rows.items()
        )

    def _repr_html_(self) -> str:
        return "".join(_row(what, share, said) for what, (share, said) in self._rows.items())


def _row(what: str, share: float | None, said: str) -> str:
    value = "" if share is None else f' value="{share:.4f}"'  # without a value the bar moves back and forth
    cells = f"<span>{_percent(share)}</span><span>{escape(said)}</span>"
    return f'<div style="{_ROW}"><span>{escape(what)}</span><progress{value} max="1"></progress>{cells}</div>'


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"
