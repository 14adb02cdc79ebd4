"""The forms in which progress is shown, and the one that a Python caller would see."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any, Literal

TellingForm = Literal["bar", "notebook", "lines", "json", "none"]


def callers_form() -> TellingForm:
    """The form for callers in Python: a notebook's cell, a bar where stderr is a terminal, nothing elsewhere."""
    if in_notebook():
        return "notebook"
    return "bar" if is_terminal(sys.stderr) else "none"


def in_notebook() -> bool:
    """Whether IPython runs this process for a notebook, or for another front end that shows what is displayed."""
    ipython = sys.modules.get("IPython")  # always imported in a notebook
    shell = ipython.get_ipython() if ipython is not None else None
    return hasattr(shell, "kernel")


def is_terminal(stream: Any) -> bool:
    """Whether `stream`, one of Python's or a stand-in, is a terminal. None and closed streams are not."""
    asked = getattr(stream, "isatty", None)
    return asked is not None and not getattr(stream, "closed", False) and bool(asked())


def json_line(event: str, values: Mapping[str, Any]) -> str:
    """A JSON document on one line, in ASCII only, so that no name in it reaches a terminal raw."""
    return json.dumps({"event": event, **values}, allow_nan=False, separators=(",", ":"))
