"""How far a validation is: its own steps, and those of what it calls, as TextsSteps."""

from __future__ import annotations

import threading

from arrowquant_dist.engine.progress import OnProgress, Progress
from arrowquant_dist.texts.steps import StepCallback, TextsStep
from arrowquant_dist.verify import OnBytes


class ValidationTeller:
    """Tells `callback`, where there is one; from any thread, one call at a time, and of nothing twice."""

    def __init__(self, callback: StepCallback | None) -> None:
        self._callback = callback
        self._lock = threading.Lock()
        self._last: TextsStep | None = None

    def tell(self, name: str, done: int, total: int, unit: str = "steps") -> None:
        step = TextsStep(name, done, total, unit)
        with self._lock:
            if self._callback is not None and step != self._last:
                self._last = step
                self._callback(step)

    def of_run(self, name: str) -> OnProgress:
        """What `quantize` and `export_dataset` call."""

        def told(event: Progress) -> None:
            self.tell(name, event.done_nbytes, event.total_nbytes, "bytes")

        return told

    def of_bytes(self, name: str) -> OnBytes:
        """What `verify` calls."""
        return lambda done, total: self.tell(name, done, total, "bytes")

    def of_texts(self, config: str) -> StepCallback:
        """What an evaluation calls. Models are read in a moment; what takes time is the texts."""

        def told(step: TextsStep) -> None:
            if step.unit != "bytes":
                self.tell(f"{config}: {step.name}", step.done, step.total, step.unit)

        return told
