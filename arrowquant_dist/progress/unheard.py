"""Streams that need not be heard: one that is full or gone ends no work."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any, TextIO


def silence(stream: Any) -> None:
    """What is still to be written there goes nowhere: Python would try again at its end, and fail once more."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class Unheard:
    """A text stream for what need not be heard, as progress: one that cannot be written ends nothing."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)

    def write(self, text: str) -> int:
        try:
            return self._out.write(text)
        except OSError:
            silence(self._out)
            return len(text)

    def flush(self) -> None:
        try:
            self._out.flush()
        except OSError:
            silence(self._out)
