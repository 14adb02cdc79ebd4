"""The fixture `logged`: what is logged while a test runs.

pytest's own fixture is turned off (pyproject.toml). Three times per test it searches all loggers for those with levels
of their own, of which torch has dozens. That takes 3 ms of CPU for each of many thousand tests.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


class Logged(logging.Handler):
    """The log. records: log records with the formatted line as `message`, oldest first."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        record.message = record.getMessage()
        self.records.append(record)

    @property
    def text(self) -> str:
        """All lines, including tracebacks."""
        return "\n".join(self.format(record) for record in self.records)

    @contextmanager
    def at_level(self, level: int, logger: str = "") -> Iterator[None]:
        """Sets the level of the logger of that name, by default the root logger, within the block."""
        changed = logging.getLogger(logger)
        before = changed.level
        changed.setLevel(level)
        try:
            yield
        finally:
            changed.setLevel(before)

    def shard_lines(self) -> list[dict[str, Any]]:
        """The JSON lines that an engine logs, one per shard."""
        return [
            json.loads(record.message) for record in self.records if record.name == "arrowquant_dist.shards"
        ]


@pytest.fixture
def logged() -> Iterator[Logged]:
    handler = Logged()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)
