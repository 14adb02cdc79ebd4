"""A dataset's layers, decoded, as the pairs of names and tensors that a model's `load_weights` takes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from arrowquant_dist.dataset.prefetch import load_now
from arrowquant_dist.dataset.region import Region
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.loader.opened import OpenDataset
from arrowquant_dist.loader.tensors import as_tensor
from arrowquant_dist.plugins.vllm.ahead import Ahead
from arrowquant_dist.plugins.vllm.lazy import Box, LazyTensor

NamedTensors = Iterator[tuple[str, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class DecodedLayer:
    """The values of a layer in the source's dtype, as a WeightSource."""

    ahead: Ahead[torch.Tensor]
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    most_nbytes: int

    def read(self, box: Box) -> torch.Tensor:
        return self.ahead.take(self.name, box)


@contextmanager
def decoded_weights(opened: OpenDataset, waiting_nbytes: int) -> Iterator[NamedTensors]:
    """Yields every name of the source, in storage order. waiting_nbytes: most bytes that were read ahead and wait to be
    taken."""
    layers = {name: opened.dataset.layer(name) for names in opened.names.values() for name in names}

    def read(name: str, box: Box) -> torch.Tensor:
        layer = layers[name]
        spans = dict(zip(range(len(layer.shape)), box, strict=False))
        values = load_now(opened.assembler.values(Region.cut(layer, spans), layer.dtype), opened.budget)
        return as_tensor(values, layer.dtype)

    def nbytes(name: str, box: Box) -> int:
        layer = layers[name]
        return len(box.rows) * len(box.columns) * math.prod(layer.shape[2:]) * DTYPES[layer.dtype].itemsize

    shapes = {name: layer.shape for name, layer in layers.items()}
    with Ahead(shapes, read, nbytes, workers=opened.workers, limit_nbytes=waiting_nbytes) as ahead:
        yield (
            (name, LazyTensor.of(DecodedLayer(ahead, name, layer.shape, _dtype(layer.dtype), waiting_nbytes)))
            for name, layer in layers.items()
        )


def _dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype
