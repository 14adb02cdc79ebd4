"""A dataset's layers as the pairs of names and tensors that `load_weights` of a model takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from arrowquant_dist.loader import WeightLoader
from arrowquant_dist.plugins.vllm.lazy import LazyTensor


@dataclass(frozen=True, slots=True)
class DecodedLayer:
    """The values of a layer, decoded to the source's dtype."""

    loader: WeightLoader
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    most_nbytes: int

    def read(self, start: int, stop: int) -> torch.Tensor:
        rows = slice(start, stop) if self.shape else None
        values: torch.Tensor = self.loader.read(self.name, rows)
        return values


def decoded_weights(loader: WeightLoader) -> Iterator[tuple[str, torch.Tensor]]:
    """Every name of the source, in storage order."""
    for name in loader.keys():  # noqa: SIM118 - not a mapping that iterates over its keys
        layer = loader.layer(name)
        dtype: torch.dtype = getattr(torch, layer.dtype)
        yield name, LazyTensor.of(DecodedLayer(loader, name, layer.shape, dtype, loader.memory_nbytes // 4))
