"""The elements of a plan: row blocks in shards."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from arrowquant_dist.checkpoint.table import Layer
from arrowquant_dist.config import QuantSpec
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.encodings.kept_codes import KeptCodes
from arrowquant_dist.encodings.place import Place
from arrowquant_dist.encodings.trained import TrainedRows

# Version of the plan's form: its table, and what its fingerprint covers. Changes in what the code makes of an equal
# plan are covered by code_digest.
PLAN_VERSION = 3


@dataclass(frozen=True, slots=True)
class RowBlock:
    """Rows [row_start, row_start + rows) of `layer`, stored as one V2 row.

    The layer is seen as a matrix [prod(shape[:row_dims]), columns]. kept_reason: why the layer stays unquantized, or
    None. side_tensors: what the spec's method needs besides the layer's values, named `{layer}.{part}`, in the order
    of its SideInput's `shapes`; for a layer whose spec is_trained, the tensors that are stored for it, as TrainedRows
    has them.
    """

    layer: Layer
    spec: QuantSpec
    row_start: int
    rows: int
    kept_reason: str | None = None
    side_tensors: tuple[Layer, ...] = ()

    @property
    def layer_name(self) -> str:
        return self.layer.name

    @property
    def is_first(self) -> bool:
        return self.row_start == 0

    @property
    def is_whole(self) -> bool:
        return self.rows == math.prod(self.layer.shape[: self.spec.row_dims])

    @property
    def columns(self) -> int:
        return math.prod(self.layer.shape[self.spec.row_dims :])

    @property
    def shape(self) -> tuple[int, ...]:
        """The V2 row's `shape`: that of a whole layer, or [rows, *layer_shape[row_dims:]] for a part of one."""
        return self.layer.shape if self.is_whole else (self.rows, *self.layer.shape[self.spec.row_dims :])

    @property
    def side_parts(self) -> dict[str, Layer]:
        """{part: side tensor}."""
        return {tensor.name.removeprefix(f"{self.layer.name}."): tensor for tensor in self.side_tensors}

    @property
    def own_spec(self) -> QuantSpec:
        """The spec for values of `shape`: in a part of a layer, rows are the first dimension, however many dimensions
        make up the rows of the layer."""
        if self.spec.row_dims == 1 or self.is_whole:
            return self.spec
        return replace(self.spec, row_dims=1)

    @property
    def num_params(self) -> int:
        return self.rows * self.columns

    @property
    def source_nbytes(self) -> int:
        """Size of the block's values in the source's dtype."""
        return self.num_params * DTYPES[self.layer.dtype].itemsize

    @property
    def given_nbytes(self) -> int:
        """Size in the source of what the block stores: its share of codes, scales and zero points if these are kept,
        else the size of its values."""
        if not self.spec.keeps_codes:
            return self.source_nbytes
        layer = self.layer
        stored = layer.encoding.kept_nbytes(layer, self.spec)
        rows = math.prod(layer.shape[: self.spec.row_dims])
        return stored * (self.row_start + self.rows) // rows - stored * self.row_start // rows

    @property
    def read_as(self) -> Layer:
        """The layer with the encoding by which its blocks are read: KeptCodes if its codes are kept, TrainedRows if
        it was trained."""
        if self.spec.is_trained:
            places = tuple(Place(side.uri, side.offset, side.dtype, side.shape) for side in self.side_tensors)
            return replace(self.layer, encoding=TrainedRows(self.layer.encoding, self.spec, places))
        if not self.spec.keeps_codes:
            return self.layer
        return replace(self.layer, encoding=KeptCodes(self.layer.encoding, self.spec))

    @property
    def value_range(self) -> tuple[int, int]:
        """[start, stop) of the block's values among the layer's values in C order."""
        return self.row_start * self.columns, (self.row_start + self.rows) * self.columns


@dataclass(frozen=True, slots=True)
class Shard:
    """The row blocks that one worker turns into one part file, in the order of their bytes in the source."""

    index: int
    blocks: tuple[RowBlock, ...]

    @property
    def noun(self) -> str:
        return "shard"

    @property
    def label(self) -> str:
        return str(self.index)

    @property
    def source_nbytes(self) -> int:
        return sum(block.source_nbytes for block in self.blocks)


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a run does, fixed before the first weight is read.

    fingerprint: `xxh3_128:<hex>` over source, layers, specs, blocks, shards and code: equal plans make equal bytes.
    code: the code_digest of the package that made the plan, and that has to carry it out; "" for a plan of version 1.
    source: {uri, format, files: [{uri, nbytes, version}]}, URIs without credentials; for a model's folder also
        `sidecars`, in the form of files; for a dataset also `largest_row_nbytes` (see Checkpoint).
    side_inputs: {config field: the side input there, in the same form}, for methods that need one.
    config: QuantizationConfig.to_dict(), and under `run` the run settings that change bytes.
    left_out: {name of a tensor of the source: why it is not a layer}, as in Checkpoint.
    notes: remarks for people (a word of mixed_precision_layers that matched nothing …).
    version: version of the plan format that it was made in; fingerprints of two versions are never equal.
    """

    shards: tuple[Shard, ...]
    aliases: dict[str, str]
    source: dict[str, Any]
    config: dict[str, Any]
    compression: str
    fingerprint: str
    code: str
    sidecars: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    side_inputs: dict[str, Any] = field(default_factory=dict)
    version: int = PLAN_VERSION
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def blocks(self) -> Iterator[RowBlock]:
        """All row blocks, in the order of their bytes in the source."""
        return (block for shard in self.shards for block in shard.blocks)
