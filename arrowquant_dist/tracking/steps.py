"""Metrics of the steps of something long, reported while it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from arrowquant_dist.errors import ArrowQuantError
from arrowquant_dist.tracking.figures import finite_metrics
from arrowquant_dist.tracking.mlflow_run import StepMetric, TrackedRun

_INTERVAL_SECONDS = 10.0


class StepMetrics:
    """Reports metrics of steps at most every ten seconds, and the rest when asked to. After an error of the server it
    is not tried again until then, so that it holds up no step."""

    def __init__(self, run: TrackedRun, clock: Callable[[], float] = time.monotonic) -> None:
        self._run, self._clock = run, clock
        self._told_at, self._is_lost = clock(), False
        self._waiting: list[StepMetric] = []

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds the metrics of a step that have a finite value. Never raises errors of the server."""
        at_ms = int(1000 * time.time())
        self._waiting += [StepMetric(*each, step, at_ms) for each in finite_metrics(metrics).items()]
        now = self._clock()
        if self._is_lost or now - self._told_at < _INTERVAL_SECONDS:
            return
        self._told_at = now
        try:
            self.tell()
        except ArrowQuantError:
            self._is_lost = True

    def tell(self) -> None:
        """Reports all that waits. Raises ArrowQuantError where the server does not accept it; it then stays waiting."""
        self._run.log_steps(self._waiting)
        self._waiting = []
