"""`logged`: what is logged while a test runs.

pytest's own way of it is off (pyproject.toml): three times a test it looks through every logger for those of their own,
of which torch has dozens, which is 3 ms of CPU for each of many thousand tests.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


class Logged(logging.Handler):
    """records: with the finished line as `message`, the oldest first."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        record.message = record.getMessage()
        self.records.append(record)

    @property
    def text(self) -> str:
        """Every line, tracebacks included."""
        return "\n".join(self.format(record) for record in self.records)

    @contextmanager
    def at_level(self, level: int, logger: str = "") -> Iterator[None]:
        """The logger of that name lets such records through meanwhile; the root's without one."""
        changed = logging.getLogger(logger)
        before = changed.level
        changed.setLevel(level)
        try:
            yield
        finally:
            changed.setLevel(before)

    def shard_lines(self) -> list[dict[str, Any]]:
        """The lines of JSON that an engine logs, one a shard."""
        return [
            json.loads(record.message) for record in self.records if record.name == "arrowquant_dist.shards"
        ]


@pytest.fixture
def logged() -> Iterator[Logged]:
    handler = Logged()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)
