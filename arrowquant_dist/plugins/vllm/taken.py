"""How much of each weight a model takes while it loads.

A parameter of vLLM takes its rank's part of a weight by its own size: one that the config made too small takes as much
as it has room for, and the rest is left where it is. So what is read of each weight is counted here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from arrowquant_dist.plugins.vllm.lazy import Box, LazyTensor, WeightSource
from arrowquant_dist.plugins.vllm.weights import NamedTensors


@dataclass(slots=True, eq=False)
class _Counted:
    """A weight, how many places of its first two dimensions have been read, and up to which row and column."""

    source: WeightSource
    places: int = 0
    row_stop: int = 0
    column_stop: int = 0

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.source.dtype

    @property
    def most_nbytes(self) -> int:
        return self.source.most_nbytes

    def read(self, box: Box) -> torch.Tensor:
        self.places += len(box.rows) * len(box.columns)
        self.row_stop = max(self.row_stop, box.rows.stop)
        self.column_stop = max(self.column_stop, box.columns.stop)
        return self.source.read(box)


class TakenParts:
    """ranks: among how many processes a weight may be split."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._weights: dict[str, _Counted] = {}

    def counted(self, pairs: NamedTensors) -> NamedTensors:
        """The same names and tensors; what is read of them is noted."""
        for name, tensor in pairs:
            if not isinstance(tensor, LazyTensor):
                yield name, tensor
                continue
            self._weights[name] = _Counted(tensor.source)
            yield name, LazyTensor.of(self._weights[name])

    def cut_off(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(name, shape) of weights of which all ranks together take less than there is.

        All ranks take alike, but the last one, whose parts end where the weight does: it may have less, and beyond
        the end the padding of its parameter. A weight that is not taken at all is another rank's, or none's.
        """
        for name, weight in self._weights.items():
            rows, columns = (*weight.shape, 1, 1)[:2]
            ends = (weight.row_stop, weight.column_stop) == (rows, columns)
            if weight.places and not ends and weight.places * self._ranks < rows * columns:
                yield name, weight.shape
