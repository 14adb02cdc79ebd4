"""NVFP4 whose bytes hold values of two neighbouring rows: fused experts [experts, in, out] as ModelOpt writes them.

Groups run down the columns, along the inputs: the matrices are stored in the model's layout, which is transposed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from arrowquant_dist.arena import Allocate
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.encodings.encoding import Source, SourceRange, Stored
from arrowquant_dist.encodings.global_scale import FACTOR_ROW_NBYTES, GlobalScale
from arrowquant_dist.encodings.nvfp4 import Nvfp4Codes, layer_rows
from arrowquant_dist.encodings.place import Place
from arrowquant_dist.encodings.rows import OUT_BITS, check_factors
from arrowquant_dist.kernels.code_kinds import E2M1
from arrowquant_dist.tensor.source import as_float32

_SCALE_NBYTES = 8  # as float32, and with its factor


@dataclass(frozen=True, slots=True)
class Nvfp4RowPairs(Nvfp4Codes):
    """Row r of bytes holds rows 2 r (in the low four bits) and 2 r + 1. Each matrix has an even number of rows.

    group: number of rows that share a scale, a divisor of a matrix's rows. scales: […, rows / group, columns].
    """

    kind: ClassVar[str] = "nvfp4_row_pairs"

    def slice(self, layer: Stored, start: int, stop: int) -> RowPairsSlice:
        shared = GlobalScale.of(self.factor, self.divisor, layer_rows(layer) // self.group)
        return RowPairsSlice(layer, start, stop, self.group, self.scales, shared)


@dataclass(frozen=True, slots=True)
class RowPairsSlice:
    """Values [start, stop) of such a layer. Memory: as for a `RowSlice`."""

    layer: Stored
    start: int
    stop: int
    group: int
    scales: Place
    global_scale: GlobalScale | None

    @property
    def rows(self) -> range:
        """The layer's rows, counted over all matrices, that hold the values."""
        if self.start >= self.stop:
            return range(0)
        columns = self.layer.shape[-1]
        return range(self.start // columns, -(-self.stop // columns))

    @property
    def decoded_nbytes(self) -> int:
        """Size in bytes of all values of `rows`."""
        return len(self.rows) * self.layer.shape[-1] * DTYPES[self.layer.dtype].itemsize

    @property
    def beside_nbytes(self) -> int:
        if not self.rows:
            return 0
        return len(self._scale_rows) * (_SCALE_NBYTES * self.layer.shape[-1] + FACTOR_ROW_NBYTES)

    @property
    def ranges(self) -> list[SourceRange]:
        """Codes and scales, and the factor or divisor if there is one. Empty if `rows` is empty."""
        if not self.rows:
            return []
        columns = self.layer.shape[-1]
        codes = Place(self.layer.uri, self.layer.offset, "uint8", ())
        found = [_rows_of(codes, self._code_rows, columns), _rows_of(self.scales, self._scale_rows, columns)]
        return found if self.global_scale is None else [*found, self.global_scale.source_range]

    def values(self, found: Sequence[np.ndarray], _source: Source, allocate: Allocate) -> np.ndarray:
        from arrowquant_dist.kernels.sources import decode_row_pairs

        out = allocate(self.decoded_nbytes)
        if not found:
            return out
        columns, rest = self.layer.shape[-1], iter(found)
        codes = next(rest).reshape(-1, columns)
        scales = as_float32(next(rest), self.scales.dtype).reshape(-1, columns)
        shared = 1.0
        if self.global_scale is not None:
            scales, shared = self.global_scale.applied(scales, next(rest), self._scale_rows)
        check_factors(scales, shared, codes, E2M1, self.layer)
        decode_row_pairs(
            codes,
            self.rows.start % 2,
            np.ascontiguousarray(scales),
            self.group,
            self.rows.start % self.group,
            out.view(OUT_BITS[self.layer.dtype]).reshape(len(self.rows), columns),
        )
        itemsize, first = DTYPES[self.layer.dtype].itemsize, self.rows.start * columns
        return out[(self.start - first) * itemsize : (self.stop - first) * itemsize]

    @property
    def _code_rows(self) -> range:
        return range(self.rows.start // 2, -(-self.rows.stop // 2))

    @property
    def _scale_rows(self) -> range:
        return range(self.rows.start // self.group, -(-self.rows.stop // self.group))


def _rows_of(place: Place, rows: range, columns: int) -> SourceRange:
    row_nbytes = columns * place.itemsize
    start = place.offset + rows.start * row_nbytes
    return SourceRange(place.uri, start, start + len(rows) * row_nbytes, place.itemsize)
