"""The layer table: where each tensor's bytes are, never the bytes themselves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.encodings.encoding import Encoding
from arrowquant_dist.encodings.raw import RAW
from arrowquant_dist.storage.base import ObjectInfo, Store

if TYPE_CHECKING:
    from arrowquant_dist.dataset.dataset import Dataset


@dataclass(frozen=True, slots=True)
class Layer:
    """One named tensor of a checkpoint.

    shape: of its values, () for a scalar.
    dtype: of its values, a key of `DTYPES`.
    offset, nbytes: the byte range in the object at `uri` that holds the values, or the codes from which they are
        decoded.
    encoding: how the values follow from that range.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    uri: str
    offset: int
    nbytes: int
    encoding: Encoding = RAW

    @property
    def num_params(self) -> int:
        return math.prod(self.shape)

    @property
    def source_nbytes(self) -> int:
        """Size of the decoded tensor in the source's dtype."""
        return self.num_params * DTYPES[self.dtype].itemsize


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One object of the source, as it was when its headers were read.

    nbytes and version (see ObjectInfo) are part of the fingerprint, so a change of the source in between is noticed.
    """

    uri: str
    nbytes: int
    version: str


def as_listed(store: Store, infos: Iterable[ObjectInfo]) -> tuple[SourceFile, ...]:
    """Objects of a store, as they were when listed."""
    return tuple(SourceFile(store.url(info.path), info.nbytes, info.version) for info in infos)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that is known of a source from its headers.

    layers: each stored tensor once, in file order.
    files: the objects that they are read from.
    aliases: {name: stored name} of tied tensors.
    sidecars: paths under `uri` of the small files that belong to a model (config.json, tokenizer, README …).
    sidecar_files: the same files with their versions.
    format: `safetensors` `torch` `v1` `v2`.
    decoded: {name of a stored tensor: the layer that it is a part of} for the codes, scales and other tensors that a
        quantized source has instead of values.
    left_out: {name of a stored tensor: why} for tensors that only served to compute with the codes and belong to no
        layer. Layers, aliases, decoded and left_out together name every tensor of the source.
    kept: {layer: why} for layers that stay byte for byte whatever a config says, such as codes that can't be decoded
        and their scales.
    unscaled: {layer: the tensors beside it} for float8 layers whose scales are unknown: no plan is made of them unless
        the config says that they have none.
    notes: remarks for people.
    largest_row_nbytes: for a source that is a dataset, the memory needed to read any one of its rows, which may be
        larger than the part that is wanted.
    dataset: such a source as it was opened, so that its index need not be read again.
    record: for a side input, the content of the JSON file that marks it as finished.
    """

    uri: str
    format: str
    layers: tuple[Layer, ...]
    files: tuple[SourceFile, ...]
    aliases: dict[str, str] = field(default_factory=dict)
    sidecars: tuple[str, ...] = ()
    decoded: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    largest_row_nbytes: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    sidecar_files: tuple[SourceFile, ...] = ()
    unscaled: dict[str, tuple[str, ...]] = field(default_factory=dict)
    dataset: Dataset | None = field(default=None, repr=False, compare=False)
    record: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
