"""What a caller is told of a model that is being filled."""

from __future__ import annotations

from arrowquant_dist.loader.stream import ProgressCallback


class ModelProgress:
    """Tells `progress` of values that are in their place: bytes of the model that are, those of all, and the layer.

    nbytes: of all.
    """

    def __init__(self, progress: ProgressCallback | None, nbytes: int) -> None:
        self._progress = progress
        self._done, self._total = 0, nbytes

    def __call__(self, layer: str, nbytes: int) -> None:
        self._done += nbytes
        if self._progress is not None:
            self._progress(self._done, self._total, layer)
