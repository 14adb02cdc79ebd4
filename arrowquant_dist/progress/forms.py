"""The forms in which progress is told, and where a Python caller would see it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any, Literal

TellingForm = Literal["bar", "notebook", "lines", "json", "none"]


def callers_form() -> TellingForm:
    """For those who call functions: a notebook's cell, or a bar where stderr is a terminal; nothing elsewhere."""
    if in_notebook():
        return "notebook"
    return "bar" if is_terminal(sys.stderr) else "none"


def in_notebook() -> bool:
    """Whether IPython runs this process for a notebook, or another front end that shows what is displayed."""
    ipython = sys.modules.get("IPython")  # who is in a notebook has it
    shell = ipython.get_ipython() if ipython is not None else None
    return hasattr(shell, "kernel")


def is_terminal(stream: Any) -> bool:
    """stream: one of Python's, or what stands in its place. None, or a closed one, is none."""
    asked = getattr(stream, "isatty", None)
    return asked is not None and not getattr(stream, "closed", False) and bool(asked())


def json_line(event: str, values: Mapping[str, Any]) -> str:
    """A JSON document on one line. ASCII only: no name in it reaches a terminal raw."""
    return json.dumps({"event": event, **values}, allow_nan=False, separators=(",", ":"))
