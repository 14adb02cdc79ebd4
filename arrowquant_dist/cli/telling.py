"""The form of a command's progress and errors on stderr: a bar, lines, JSON lines, or nothing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TextIO

from arrowquant_dist.progress.forms import TellingForm


class LogFormat(StrEnum):
    """Format of progress and errors on stderr."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Telling:
    """What a command prints to stderr. quiet: only errors. log_format: format of progress and errors."""

    quiet: bool = False
    log_format: LogFormat = LogFormat.TEXT

    def form(self, out: TextIO) -> TellingForm:
        if self.quiet:
            return "none"
        if self.log_format is LogFormat.JSON:
            return "json"
        return "bar" if out.isatty() else "lines"


PLAIN = Telling()
