"""Loads of layers and their parts: as torch tensors, as codes, and into existing memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from arrowquant_dist.arena import Allocate, fresh
from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.dataset.prefetch import Budget, Load
from arrowquant_dist.dataset.region import Region
from arrowquant_dist.dataset.together import batched
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.loader.memory import decodable_bytes, written_past_torch
from arrowquant_dist.loader.opened import LoaderSettings, OpenDataset
from arrowquant_dist.loader.tensors import as_tensor
from arrowquant_dist.tensor import QuantizedTensor

if TYPE_CHECKING:
    import torch


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Loads:
    """Loads of one open dataset, with a loader's settings. allocate: allocates the memory of decoded values."""

    opened: OpenDataset
    settings: LoaderSettings
    allocate: Allocate = fresh

    @property
    def uri(self) -> str:
        return self.opened.dataset.uri

    @property
    def layers(self) -> Mapping[str, StoredLayer]:
        return self.opened.dataset.layers

    @property
    def names(self) -> Mapping[str, Sequence[str]]:
        return self.opened.names

    @property
    def budget(self) -> Budget:
        return self.opened.budget

    @property
    def workers(self) -> int:
        return self.opened.workers

    def differ(self, first: StoredLayer, second: StoredLayer) -> bool:
        """Returns whether two layers of the same shape and dtype have different values."""
        return self.opened.differ(first, second, (first.dtype, second.dtype))

    def of_codes(self) -> Loads:
        """Returns loads of the same open dataset that give QuantizedTensors."""
        return replace(self, settings=replace(self.settings, dequantize=False, dtype=None))

    def dtype(self, layer: StoredLayer) -> str:
        """Returns the dtype that a layer is decoded to."""
        return (self.settings.dtype if layer.is_float else None) or layer.dtype

    def one(self, region: Region) -> Load[Any]:
        """Loads a tensor, or a QuantizedTensor if the loader gives codes."""
        if not self.settings.dequantize:
            return self.opened.assembler.quantized(region)
        return self.decoded(region, self.dtype(region.layer))

    def decoded(self, region: Region, dtype: str) -> Load[torch.Tensor]:
        values = self.opened.assembler.values(region, dtype, allocate=self.allocate)
        return values.then(partial(as_tensor, dtype=dtype))

    def into(self, region: Region, tensor: torch.Tensor, dtype: str) -> Load[torch.Tensor]:
        """Loads values of `dtype` for `tensor`: decoded into its memory where possible, with `tensor` itself as the
        result; otherwise as a new tensor, to be copied."""
        memory = decodable_bytes(tensor, dtype)
        if memory is None:
            return self.decoded(region, dtype)

        def filled(_: np.ndarray) -> torch.Tensor:
            written_past_torch(tensor)
            return tensor

        return self.opened.assembler.values(region, dtype, memory).then(filled)

    def named(self, regions: Mapping[str, Region]) -> Iterator[Load[list[tuple[str, Any]]]]:
        """Loads pairs of name and tensor. Adjacent names of the same part of the same layer are read once."""
        tied: list[str] = []
        for name, region in regions.items():
            if tied and not region.is_same(regions[tied[0]]):
                yield from self._tied(tied, regions)
                tied = []
            tied.append(name)
        if tied:
            yield from self._tied(tied, regions)

    def batched(self, loads: Iterable[Load[T]]) -> Iterator[Load[Iterator[T]]]:
        """Returns the same loads, with small ones that follow each other combined into one."""
        return batched(loads, self.opened.dataset, self.share_nbytes)

    @property
    def share_nbytes(self) -> int:
        """Bytes of the budget that one load of several layers may take."""
        return self.opened.budget.limit_nbytes // (4 * self.opened.workers)

    def nbytes(self, region: Region) -> int:
        """Returns the size in bytes of a region's tensor, or roughly that of its codes and scales."""
        layer = region.layer
        if self.settings.dequantize:
            return region.num_params * DTYPES[self.dtype(layer)].itemsize
        nbytes = sum(block.header.data_nbytes + 4 * block.header.scale_count for block in layer.blocks)
        return nbytes * region.num_params // max(layer.num_params, 1)

    def _tied(self, names: Sequence[str], regions: Mapping[str, Region]) -> list[Load[list[tuple[str, Any]]]]:
        """Returns one load that gives every name a tensor of its own, or one load per name if together they would not
        fit the budget."""
        load = self.one(regions[names[0]])
        extra = load.result_nbytes * (len(names) - 1)
        if load.peak_nbytes + extra > self.opened.budget.limit_nbytes:
            return [load.then(partial(with_copies, [name], self.allocate)) for name in names]
        return [load.then(partial(with_copies, names, self.allocate), extra)]


def with_copies(names: Iterable[str], allocate: Allocate, value: Any) -> list[tuple[str, Any]]:
    """Returns the value under its first name, and copies of it under the others."""
    first, *others = names
    return [(first, value), *((name, _copy(value, allocate)) for name in others)]


def _copy(value: Any, allocate: Allocate) -> Any:
    if not isinstance(value, QuantizedTensor):
        return _copied(value, allocate)
    arrays = {name: getattr(value, name).copy() for name in ("codes", "scales", "zero_points")}
    return replace(value, **arrays)


def _copied(value: torch.Tensor, allocate: Allocate) -> torch.Tensor:
    dtype = str(value.dtype).removeprefix("torch.")
    values = allocate(value.nbytes).view(np.dtype(DTYPES[dtype].bits))
    return as_tensor(values.reshape(value.shape), dtype).copy_(value)
