"""How far a calibration has come."""

from __future__ import annotations

import threading

from arrowquant_dist.engine import EngineEvent
from arrowquant_dist.texts.steps import StepCallback, TextsStep


class Steps:
    """Reports the progress of one step after another, from the events of an engine. callback: None: nobody listens."""

    def __init__(self, callback: StepCallback | None) -> None:
        self._callback, self._lock = callback, threading.Lock()
        self._name, self._done, self._total = "", 0, 0

    def begin(self, name: str, done: int, total: int) -> None:
        """Begins a step. done, total: number of tokens done already, and in all."""
        with self._lock:
            self._name, self._done, self._total = name, done, total
            self._tell()

    def on_event(self, event: EngineEvent) -> None:
        """Called by the engine."""
        with self._lock:
            self._done += event.nbytes
            self._tell()

    def _tell(self) -> None:
        if self._callback is not None:
            self._callback(TextsStep(self._name, min(self._done, self._total), self._total, "tokens"))
