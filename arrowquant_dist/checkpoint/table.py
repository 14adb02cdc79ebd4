"""The layer table: where each tensor's bytes are, never the bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow as pa

from arrowquant_dist.dtypes import DTYPES

RAW = "raw"  # `nbytes` little-endian values in C order from `offset` of the object at `uri`
STRIDED = "strided:"  # + JSON list of strides, in values
SCALED = "scaled:"  # + JSON of checkpoint/quantized/encoding.py
DATASET = "dataset"

LAYER_TABLE_SCHEMA = pa.schema(
    [
        ("layer_name", pa.string()),
        ("shape", pa.list_(pa.int64())),
        ("dtype", pa.string()),
        ("num_params", pa.int64()),
        ("uri", pa.string()),
        ("offset", pa.int64()),
        ("nbytes", pa.int64()),
        ("encoding", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Layer:
    """One named tensor of a checkpoint.

    shape: () for a scalar. dtype: a key of `DTYPES`. offset, nbytes: the object's byte range that holds the
    values. encoding: how to read that range: `raw`; `strided:<json>` (a torch view that is not contiguous:
    its strides in values); `scaled:<json>` (codes of a quantized checkpoint, with the places of their scales;
    shape and dtype are those of the decoded values, nbytes those of the codes); `dataset` (a layer of the
    V1/V2 dataset at `uri`, decoded through its rows; offset 0, nbytes those of the decoded values).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    uri: str
    offset: int
    nbytes: int
    encoding: str = RAW

    @property
    def num_params(self) -> int:
        return math.prod(self.shape)

    @property
    def source_nbytes(self) -> int:
        """Size of the decoded tensor in the source's dtype."""
        return self.num_params * DTYPES[self.dtype].itemsize


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One object of the source that weights are read from.

    nbytes and version (ETag, mtime …) go into the fingerprint: a source that changed in between is noticed.
    """

    uri: str
    nbytes: int
    version: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything known of a source from its headers.

    layers: each stored tensor once, in file order. aliases: {name: stored name} of tied tensors.
    sidecars: paths under `uri` of the small files that belong to a model (config.json, tokenizer, README …).
    format: `safetensors` `torch` `v1` `v2`. decoded: {name of a stored tensor: layer that it is a part of} of
    codes, scales and what else a quantized source has instead of values; layers, aliases and decoded together
    name every tensor of the source. notes: for people.
    """

    uri: str
    format: str
    layers: tuple[Layer, ...]
    files: tuple[SourceFile, ...]
    aliases: dict[str, str] = field(default_factory=dict)
    sidecars: tuple[str, ...] = ()
    decoded: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def layer_table(layers: Iterable[Layer]) -> pa.Table:
    """The Arrow form of `layers`, a row each, schema LAYER_TABLE_SCHEMA."""
    rows = list(layers)
    columns = [
        [layer.name for layer in rows],
        [list(layer.shape) for layer in rows],
        [layer.dtype for layer in rows],
        [layer.num_params for layer in rows],
        [layer.uri for layer in rows],
        [layer.offset for layer in rows],
        [layer.nbytes for layer in rows],
        [layer.encoding for layer in rows],
    ]
    return pa.table(
        [pa.array(c, f.type) for c, f in zip(columns, LAYER_TABLE_SCHEMA, strict=True)], LAYER_TABLE_SCHEMA
    )
