"""Layer table + config → shards: which rows of which layers each worker turns into a part, and how."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from arrowquant_dist.checkpoint.table import Layer
from arrowquant_dist.config import QuantSpec


@dataclass(frozen=True, slots=True)
class RowBlock:
    """Rows [row_start, row_start + rows) of `layer`, stored as one V2 row.

    The layer is seen as [prod(shape[:row_dims]), columns]. kept_reason: why a layer stays unquantized, or None.
    """

    layer: Layer
    spec: QuantSpec
    row_start: int
    rows: int
    kept_reason: str | None = None

    @property
    def is_whole(self) -> bool:
        return self.rows == math.prod(self.layer.shape[: self.spec.row_dims])

    @property
    def columns(self) -> int:
        return math.prod(self.layer.shape[self.spec.row_dims :])

    @property
    def shape(self) -> tuple[int, ...]:
        """The V2 row's `shape`: the layer's own, or [rows, *layer_shape[row_dims:]] of a block."""
        return self.layer.shape if self.is_whole else (self.rows, *self.layer.shape[self.spec.row_dims :])

    @property
    def num_params(self) -> int:
        return self.rows * self.columns

    @property
    def value_range(self) -> tuple[int, int]:
        """[start, stop) of this block's values among the layer's values in C order."""
        return self.row_start * self.columns, (self.row_start + self.rows) * self.columns


@dataclass(frozen=True, slots=True)
class Shard:
    """The row blocks that one worker turns into one part file."""

    index: int
    blocks: tuple[RowBlock, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a run does, fixed before the first weight is read.

    fingerprint: `xxh3_128:<hex>` over source, config and whatever of the run settings changes bytes.
    source: {uri, format, files: [{uri, nbytes, version}]}, URIs without credentials. config: as given, resolved.
    notes: for people (a word of mixed_precision_layers that matched nothing …).
    """

    shards: tuple[Shard, ...]
    aliases: dict[str, str]
    source: dict[str, Any]
    config: dict[str, Any]
    compression: str
    fingerprint: str
    sidecars: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
