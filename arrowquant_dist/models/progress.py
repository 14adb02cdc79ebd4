"""Progress reports while a model is being filled."""

from __future__ import annotations

from arrowquant_dist.loader.stream import ProgressCallback


class ModelProgress:
    """Reports values that are in place to `progress`: the bytes of the model in place, the bytes of all, and the layer.

    nbytes: bytes of all values.
    """

    def __init__(self, progress: ProgressCallback | None, nbytes: int) -> None:
        self._progress = progress
        self._done, self._total = 0, nbytes

    def __call__(self, layer: str, nbytes: int) -> None:
        self._done += nbytes
        if self._progress is not None:
            self._progress(self._done, self._total, layer)
