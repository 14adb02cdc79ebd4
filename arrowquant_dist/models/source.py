"""The source that a model is filled from: layers of a dataset or of a checkpoint, read in the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.dataset.prefetch import Budget, Load
from arrowquant_dist.dataset.region import Region

if TYPE_CHECKING:
    import torch


class LayerSource(Protocol):
    """Layers by name, and loads of them: loader/loads.py::Loads for a dataset, models/checkpoint.py::CheckpointLoads
    for a checkpoint.

    uri: location, safe to show. layers: {stored name: layer}, in storage order; those of a checkpoint have no blocks.
    names: {stored name: that name and its aliases}. budget: limits the bytes in flight. workers: number of threads that
    read.
    """

    @property
    def uri(self) -> str: ...
    @property
    def layers(self) -> Mapping[str, StoredLayer]: ...
    @property
    def names(self) -> Mapping[str, Sequence[str]]: ...
    @property
    def budget(self) -> Budget: ...
    @property
    def workers(self) -> int: ...

    def differ(self, first: StoredLayer, second: StoredLayer) -> bool:
        """Returns whether two layers of the same shape and dtype have different values."""

    def decoded(self, region: Region, dtype: str) -> Load[torch.Tensor]:
        """Loads rows of a layer as a tensor of `dtype`, which for a checkpoint is the layer's own."""

    def into(self, region: Region, tensor: torch.Tensor, dtype: str) -> Load[torch.Tensor]:
        """Loads the same values into `tensor`; the result is `tensor` if its memory allows that, else a new tensor."""


def layers_by_name(source: LayerSource) -> dict[str, StoredLayer]:
    """Returns the layers by all names, including aliases."""
    return {name: source.layers[stored] for name, stored in stored_names(source).items()}


def stored_names(source: LayerSource) -> dict[str, str]:
    """Returns {any name: the name that its layer is stored under}."""
    return {name: stored for stored, names in source.names.items() for name in names}
