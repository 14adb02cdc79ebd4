"""Streams for output that nobody needs: one that is full or gone does not end the work."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any, TextIO


def silence(stream: Any) -> None:
    """Redirects what is still to be written to nowhere; at its exit Python would try again, and fail once more."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class Unheard:
    """A text stream for output that nobody needs, such as progress: errors of writing are ignored."""

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
