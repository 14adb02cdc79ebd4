"""What a model is filled from: layers of a dataset or of a checkpoint, read in the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.dataset.prefetch import Budget, Load
from arrowquant_dist.dataset.region import Region

if TYPE_CHECKING:
    import torch


class LayerSource(Protocol):
    """Layers by name, and loads of them. loader/loads.py::Loads is one of a dataset,
    models/checkpoint.py::CheckpointLoads one of a checkpoint.

    uri: safe to show. layers: {stored name: layer}, in storage order; those of a checkpoint have no blocks. names:
    {stored name: it and its aliases}. budget: what is in flight counts there. workers: threads that read.
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
        """Whether two layers of one shape and dtype have different values."""

    def decoded(self, region: Region, dtype: str) -> Load[torch.Tensor]:
        """The values of rows of a layer as a tensor of `dtype`, its own for those of a checkpoint."""

    def into(self, region: Region, tensor: torch.Tensor, dtype: str) -> Load[torch.Tensor]:
        """The same values in `tensor`, which is the result where its memory takes them, else a tensor of their own."""


def layers_by_name(source: LayerSource) -> dict[str, StoredLayer]:
    """Those of all names, aliases too."""
    return {name: source.layers[stored] for name, stored in stored_names(source).items()}


def stored_names(source: LayerSource) -> dict[str, str]:
    """{every name: the one that its layer is stored under}"""
    return {name: stored for stored, names in source.names.items() for name in names}
