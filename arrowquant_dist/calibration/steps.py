"""How far a calibration is."""

from __future__ import annotations

import threading

from arrowquant_dist.engine import EngineEvent
from arrowquant_dist.texts.steps import StepCallback, TextsStep


class Steps:
    """Tells of one step after the other what an engine tells. callback: None where nobody listens."""

    def __init__(self, callback: StepCallback | None) -> None:
        self._callback, self._lock = callback, threading.Lock()
        self._name, self._done, self._total = "", 0, 0

    def begin(self, name: str, done: int, total: int) -> None:
        """done: tokens that are done already."""
        with self._lock:
            self._name, self._done, self._total = name, done, total
            self._tell()

    def on_event(self, event: EngineEvent) -> None:
        """What an engine calls."""
        with self._lock:
            self._done += event.nbytes
            self._tell()

    def _tell(self) -> None:
        if self._callback is not None:
            self._callback(TextsStep(self._name, min(self._done, self._total), self._total, "tokens"))
