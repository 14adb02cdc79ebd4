"""What a loader reads: loads of layers and parts of them as torch tensors, of codes, and into memory that is there."""

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
    """Loads of one open dataset, by a loader's settings. allocate: where decoded values get their memory."""

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
        """Whether two layers of one shape and dtype have different values."""
        return self.opened.differ(first, second, (first.dtype, second.dtype))

    def of_codes(self) -> Loads:
        """Of the same open dataset, that give QuantizedTensors."""
        return replace(self, settings=replace(self.settings, dequantize=False, dtype=None))

    def dtype(self, layer: StoredLayer) -> str:
        """What a layer is decoded to."""
        return (self.settings.dtype if layer.is_float else None) or layer.dtype

    def one(self, region: Region) -> Load[Any]:
        """A tensor, or a QuantizedTensor where the loader gives codes."""
        if not self.settings.dequantize:
            return self.opened.assembler.quantized(region)
        return self.decoded(region, self.dtype(region.layer))

    def decoded(self, region: Region, dtype: str) -> Load[torch.Tensor]:
        values = self.opened.assembler.values(region, dtype, allocate=self.allocate)
        return values.then(partial(as_tensor, dtype=dtype))

    def into(self, region: Region, tensor: torch.Tensor, dtype: str) -> Load[torch.Tensor]:
        """Values of `dtype` for `tensor`: decoded into its memory where that takes them, which then is the result; else
        a tensor of their own, to be copied."""
        memory = decodable_bytes(tensor, dtype)
        if memory is None:
            return self.decoded(region, dtype)

        def filled(_: np.ndarray) -> torch.Tensor:
            written_past_torch(tensor)
            return tensor

        return self.opened.assembler.values(region, dtype, memory).then(filled)

    def named(self, regions: Mapping[str, Region]) -> Iterator[Load[list[tuple[str, Any]]]]:
        """Pairs of name and tensor. Names next to each other of one part of one layer are read once."""
        tied: list[str] = []
        for name, region in regions.items():
            if tied and not region.is_same(regions[tied[0]]):
                yield from self._tied(tied, regions)
                tied = []
            tied.append(name)
        if tied:
            yield from self._tied(tied, regions)

    def batched(self, loads: Iterable[Load[T]]) -> Iterator[Load[Iterator[T]]]:
        """The same loads, small ones that follow each other in one."""
        return batched(loads, self.opened.dataset, self.share_nbytes)

    @property
    def share_nbytes(self) -> int:
        """Of the budget, what one load of several layers may take."""
        return self.opened.budget.limit_nbytes // (4 * self.opened.workers)

    def nbytes(self, region: Region) -> int:
        """Of what is given for a region: of the tensor, or about those that its codes and scales have."""
        layer = region.layer
        if self.settings.dequantize:
            return region.num_params * DTYPES[self.dtype(layer)].itemsize
        nbytes = sum(block.header.data_nbytes + 4 * block.header.scale_count for block in layer.blocks)
        return nbytes * region.num_params // max(layer.num_params, 1)

    def _tied(self, names: Sequence[str], regions: Mapping[str, Region]) -> list[Load[list[tuple[str, Any]]]]:
        """One load that gives every name a tensor of its own; or one each, where their sum would not fit."""
        load = self.one(regions[names[0]])
        extra = load.result_nbytes * (len(names) - 1)
        if load.peak_nbytes + extra > self.opened.budget.limit_nbytes:
            return [load.then(partial(with_copies, [name], self.allocate)) for name in names]
        return [load.then(partial(with_copies, names, self.allocate), extra)]


def with_copies(names: Iterable[str], allocate: Allocate, value: Any) -> list[tuple[str, Any]]:
    """The value under its first name, copies of it under the others."""
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
