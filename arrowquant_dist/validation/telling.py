"""Progress of a validation as TextsSteps: its own steps, and those of the functions that it calls."""

from __future__ import annotations

import threading

from arrowquant_dist.engine.progress import OnProgress, Progress
from arrowquant_dist.texts.steps import StepCallback, TextsStep
from arrowquant_dist.verify import OnBytes


class ValidationTeller:
    """Calls `callback`, if there is one, with each step: from any thread, one call at a time, and without repeating the
    last step."""

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
        """The callback for `quantize` and `export_dataset`."""

        def told(event: Progress) -> None:
            self.tell(name, event.done_nbytes, event.total_nbytes, "bytes")

        return told

    def of_bytes(self, name: str) -> OnBytes:
        """The callback for `verify`."""
        return lambda done, total: self.tell(name, done, total, "bytes")

    def of_texts(self, config: str) -> StepCallback:
        """The callback for an evaluation. Steps in bytes are left out: reading models is quick, the texts take the
        time."""

        def told(step: TextsStep) -> None:
            if step.unit != "bytes":
                self.tell(f"{config}: {step.name}", step.done, step.total, step.unit)

        return told
