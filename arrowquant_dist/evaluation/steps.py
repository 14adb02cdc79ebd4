"""How far an evaluation has come."""

from __future__ import annotations

from collections.abc import Callable

from arrowquant_dist.texts.steps import StepCallback, TextsStep


class Teller:
    """Reports the steps of an evaluation to `callback`, if there is one."""

    def __init__(self, callback: StepCallback | None) -> None:
        self._callback = callback

    def loading(self, name: str) -> Callable[[int, int, str], None]:
        """A function to call with the bytes of a model that are in place, the bytes in all, and a layer's name."""

        def told(done: int, total: int, _layer: str) -> None:
            self._tell(TextsStep(name, done, total, "bytes"))

        return told

    def counting(self, name: str, total: int) -> Callable[[int], None]:
        """A function to call with the number of texts that were done since the last call."""
        done = 0

        def told(more: int) -> None:
            nonlocal done
            done += more
            self._tell(TextsStep(name, done, total, "texts"))

        return told

    def _tell(self, step: TextsStep) -> None:
        if self._callback is not None:
            self._callback(step)
