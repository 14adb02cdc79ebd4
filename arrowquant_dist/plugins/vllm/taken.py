"""Counts how much of each weight a model takes while it loads.

A parameter of vLLM takes its rank's part of a weight according to its own size: if the config makes it too small, it
takes as much as it has room for and ignores the rest. So what is read of each weight is counted here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from arrowquant_dist.plugins.vllm.lazy import Box, LazyTensor, WeightSource
from arrowquant_dist.plugins.vllm.weights import NamedTensors


@dataclass(slots=True, eq=False)
class _Counted:
    """A weight, the number of places in its first two dimensions that were read, and the last row and column read."""

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
    """Counts what is read of weights. ranks: the most processes that a weight may be split among."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._weights: dict[str, _Counted] = {}

    def counted(self, pairs: NamedTensors) -> NamedTensors:
        """Yields the same names and tensors, and records what is read of them."""
        for name, tensor in pairs:
            if not isinstance(tensor, LazyTensor):
                yield name, tensor
                continue
            self._weights[name] = _Counted(tensor.source)
            yield name, LazyTensor.of(self._weights[name])

    def cut_off(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yields (name, shape) of weights of which all ranks together take less than there is.

        All ranks take equal parts, except the last one, whose part ends with the weight: it may be smaller, with the
        padding of its parameter after the end. A weight that is not taken at all belongs to another rank, or to none.
        """
        for name, weight in self._weights.items():
            rows, columns = (*weight.shape, 1, 1)[:2]
            ends = (weight.row_stop, weight.column_stop) == (rows, columns)
            if weight.places and not ends and weight.places * self._ranks < rows * columns:
                yield name, weight.shape
