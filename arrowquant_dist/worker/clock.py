"""Measures how long the phases of a shard take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Wall seconds by phase, measured in one thread; work in other threads counts only as far as this one waits for it.

    started_at: seconds since 1970 (UTC), by this machine's clock.
    """

    def __init__(self) -> None:
        self.started_at, self.started = time.time(), time.perf_counter()
        self.seconds = {"read": 0.0, "quantize": 0.0, "write": 0.0, "compile": 0.0}

    @property
    def wall_seconds(self) -> float:
        return time.perf_counter() - self.started

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start
