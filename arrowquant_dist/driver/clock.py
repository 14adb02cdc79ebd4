"""Measures how long a run and its phases take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from arrowquant_dist.engine import Engine, EngineFacts
from arrowquant_dist.reduce import HostFacts, RunFacts


class RunClock:
    """Measures the driver's phases, and the time since the clock was created, in seconds."""

    def __init__(self) -> None:
        self._started_at, self._started = datetime.now(UTC), time.perf_counter()
        self._seconds: dict[str, float] = {}
        self._open: tuple[str, float] | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._open = name, time.perf_counter()
        try:
            yield
        finally:
            self._seconds, self._open = self._until(time.perf_counter()), None

    def facts(self, engine: Engine, ran: EngineFacts, resumed: tuple[int, ...]) -> RunFacts:
        """The facts of the run up to this moment. resumed: indices of the shards that an earlier run had finished."""
        now = time.perf_counter()
        return RunFacts(
            engine=engine.name,
            workers=engine.workers,
            started_at=self._started_at.isoformat(),
            wall_seconds=now - self._started,
            resumed_shards=resumed,
            host=HostFacts.here(),
            phases=self._until(now),
            shard_retries=ran.shard_retries,
            stolen=ran.stolen,
            wasted_seconds=ran.wasted_seconds,
            worker_seconds=ran.worker_seconds,
        )

    def _until(self, now: float) -> dict[str, float]:
        """Seconds of every phase, including the one that is open."""
        seconds = dict(self._seconds)
        if self._open is not None:
            name, since = self._open
            seconds[name] = seconds.get(name, 0.0) + now - since
        return seconds
