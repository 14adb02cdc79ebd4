"""How far an evaluation is."""

from __future__ import annotations

from collections.abc import Callable

from arrowquant_dist.texts.steps import StepCallback, TextsStep


class Teller:
    """Tells `callback`, where there is one, of the steps of an evaluation."""

    def __init__(self, callback: StepCallback | None) -> None:
        self._callback = callback

    def loading(self, name: str) -> Callable[[int, int, str], None]:
        """What to call with the bytes of a model that are in their place, and those of all."""

        def told(done: int, total: int, _layer: str) -> None:
            self._tell(TextsStep(name, done, total, "bytes"))

        return told

    def counting(self, name: str, total: int) -> Callable[[int], None]:
        """What to call with the number of texts that are done besides."""
        done = 0

        def told(more: int) -> None:
            nonlocal done
            done += more
            self._tell(TextsStep(name, done, total, "texts"))

        return told

    def _tell(self, step: TextsStep) -> None:
        if self._callback is not None:
            self._callback(step)
