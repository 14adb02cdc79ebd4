"""How a command tells what it does on stderr, beside its result: a bar, lines, JSON a line, or nothing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TextIO

from arrowquant_dist.progress.forms import TellingForm


class LogFormat(StrEnum):
    """Of what is told on stderr."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Telling:
    """quiet: errors alone. log_format: `json` for a document a line, progress and errors."""

    quiet: bool = False
    log_format: LogFormat = LogFormat.TEXT

    def form(self, out: TextIO) -> TellingForm:
        if self.quiet:
            return "none"
        if self.log_format is LogFormat.JSON:
            return "json"
        return "bar" if out.isatty() else "lines"


PLAIN = Telling()
