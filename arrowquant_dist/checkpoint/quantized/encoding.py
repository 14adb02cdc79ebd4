"""How a layer's values follow from stored codes and scales: `Layer.encoding` as JSON, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arrowquant_dist.checkpoint.table import SCALED, Layer
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.storage.uris import redact

PACKED_BITS = {"packed2": 2, "packed4": 4, "packed8": 8}
E2M1 = "e2m1"
CODES = ("float8_e4m3fn", "float8_e5m2", "int8", *PACKED_BITS, E2M1)
_WORD_BITS = 32
_TRANSPOSED = ',"transposed":true}'


@dataclass(frozen=True, slots=True)
class Place:
    """A stored tensor: `shape` of `dtype`, little-endian in C order, from `offset` of the object at `uri`."""

    uri: str
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype].itemsize

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.itemsize

    @classmethod
    def of(cls, layer: Layer, dtype: str | None = None) -> Place:
        """Where a raw layer is. dtype: what its bytes mean, where its own does not say it (uint8 for e8m0)."""
        return cls(layer.uri, layer.offset, dtype or layer.dtype, layer.shape)


@dataclass(frozen=True, slots=True)
class Scaled:
    """x = (code - zero point) · scale, in float32, rounded once to the layer's dtype.

    The codes lie in matrices of `rows` × `columns`, one for each index of the layer's leading dimensions, row after
    row, from the layer's `offset`.
    codes: what they are: `float8_e4m3fn`, `float8_e5m2`, `int8`; `packed2` `packed4` `packed8` (offset binary, low bits
    first, a row in whole int32 words: compressed-tensors' pack-quantized); `e2m1` (4-bit floats, two a byte, the low
    four bits first).
    block: rows and columns of a matrix that share a scale. scales: one for each block, C order, matrix after matrix;
    or a single one for all. zero_points: int8 in the scales' shape, or int32 words, packed down the rows; None where
    there are none. groups: int32 [columns], the scale of each column where groups are not runs of columns.
    transposed: the layer has each matrix's columns as its rows.
    """

    codes: str
    block: tuple[int, int]
    scales: Place
    zero_points: Place | None = None
    groups: Place | None = None
    transposed: bool = False

    def encode(self, uri: str) -> str:
        """As the encoding of a layer whose codes are at `uri`."""
        places = {"scales": self.scales, "zero_points": self.zero_points, "groups": self.groups}
        values: dict[str, Any] = {"codes": self.codes, "block": self.block}
        values |= {name: _describe(place, uri) for name, place in places.items() if place is not None}
        if self.transposed:
            values["transposed"] = True
        return SCALED + json.dumps(values, separators=(",", ":"))  # `transposed` comes last: is_transposed

    @classmethod
    def decode(cls, layer: Layer) -> Scaled:
        """Of a layer that `encode` made."""
        values = json.loads(layer.encoding.removeprefix(SCALED))
        return cls(
            values["codes"],
            tuple(values["block"]),
            _place(values["scales"], layer.uri),
            _place(values["zero_points"], layer.uri) if "zero_points" in values else None,
            _place(values["groups"], layer.uri) if "groups" in values else None,
            values.get("transposed", False),
        )


@dataclass(frozen=True, slots=True)
class Grid:
    """The matrices of codes, and of scales, of one layer: sizes that follow from its shape and its blocks."""

    rows: int
    columns: int
    row_nbytes: int
    scale_rows: int
    scale_columns: int
    single_scale: bool

    @classmethod
    def of(cls, shape: tuple[int, ...], scaled: Scaled) -> Grid:
        rows, columns = shape[-2:] if len(shape) > 1 else (1, *shape)
        if scaled.transposed:
            rows, columns = columns, rows
        block_rows, block_columns = scaled.block
        return cls(
            rows,
            columns,
            row_nbytes(scaled.codes, columns),
            -(-rows // block_rows),
            -(-columns // block_columns),
            math.prod(scaled.scales.shape) == 1,
        )


def is_transposed(layer: Layer) -> bool:
    """Of a scaled layer."""
    return layer.encoding.endswith(_TRANSPOSED)


def row_nbytes(codes: str, columns: int) -> int:
    """Bytes of a row of codes."""
    if codes in PACKED_BITS:
        return -(-columns * PACKED_BITS[codes] // _WORD_BITS) * (_WORD_BITS // 8)
    return -(-columns // 2) if codes == E2M1 else columns


def _describe(place: Place, uri: str) -> dict[str, Any]:
    described: dict[str, Any] = {"offset": place.offset, "dtype": place.dtype, "shape": place.shape}
    return described if place.uri == uri else {"uri": redact(place.uri), **described}


def _place(described: Mapping[str, Any], uri: str) -> Place:
    return Place(
        described.get("uri", uri), described["offset"], described["dtype"], tuple(described["shape"])
    )
