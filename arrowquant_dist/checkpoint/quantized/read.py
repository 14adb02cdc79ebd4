"""Values of a layer that is stored as codes and scales, for any slice of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from arrowquant_dist.checkpoint.quantized.encoding import E2M1, PACKED_BITS, Grid, Place, Scaled
from arrowquant_dist.checkpoint.table import Layer
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.errors import InvalidCheckpoint
from arrowquant_dist.tensor.source import as_float32

OUT_BITS = {"float32": "<i4", "bfloat16": "<u2", "float16": "<i2"}  # as the kernels take them
_WORD_BITS = 32


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes [start, stop) of the object at `uri`: values of `itemsize` bytes."""

    uri: str
    start: int
    stop: int
    itemsize: int


@dataclass(frozen=True, slots=True)
class Slice:
    """Values [start, stop), in C order, of a scaled layer."""

    layer: Layer
    scaled: Scaled
    grid: Grid
    start: int
    stop: int

    @classmethod
    def of(cls, layer: Layer, start: int, stop: int) -> Self:
        scaled = Scaled.decode(layer)
        return cls(layer, scaled, Grid.of(layer.shape, scaled), start, stop)


@dataclass(frozen=True, slots=True)
class ScaledSlice(Slice):
    """Of a layer that is not transposed: what to read, then how to decode it.

    Memory: the codes of the rows that the values lie in, their scales, and the rows' values.
    """

    @property
    def rows(self) -> range:
        """The rows of codes, counted over all matrices, that hold the values."""
        if self.start >= self.stop:
            return range(0)
        return range(self.start // self.grid.columns, -(-self.stop // self.grid.columns))

    @property
    def decoded_nbytes(self) -> int:
        """Of all values of `rows`."""
        return len(self.rows) * self.grid.columns * DTYPES[self.layer.dtype].itemsize

    @property
    def pieces(self) -> list[Piece]:
        """The bytes it takes: codes, scales, and zero points and groups where there are any. Empty where `rows` is."""
        rows, grid, scaled = self.rows, self.grid, self.scaled
        if not rows:
            return []
        first = self.layer.offset
        codes = Piece(
            self.layer.uri, first + rows.start * grid.row_nbytes, first + rows.stop * grid.row_nbytes, 1
        )
        pieces = [codes, _rows_of(scaled.scales, self._scale_rows, grid.scale_columns)]
        if scaled.zero_points is not None:
            pieces.append(_rows_of(scaled.zero_points, self._zero_point_rows, grid.scale_columns))
        if scaled.groups is not None:
            pieces.append(_rows_of(scaled.groups, range(1), grid.columns))
        return pieces

    def decode(self, found: list[np.ndarray], out: np.ndarray) -> np.ndarray:
        """found: the bytes of each piece. out: uint8 [decoded_nbytes]. Returns the values asked for, part of `out`."""
        from arrowquant_dist.kernels.sources import decode_rows

        if not found:
            return out
        grid, scaled, rest = self.grid, self.scaled, iter(found)
        codes = next(rest).reshape(len(self.rows), grid.row_nbytes)
        scales = as_float32(next(rest), scaled.scales.dtype).reshape(-1, grid.scale_columns)
        zero_points = np.empty((len(scales), 0), np.float32)
        if scaled.zero_points is not None:
            zero_points = self._zero_points(next(rest), scaled.zero_points).astype(np.float32)
        groups = next(rest).view("<i4") if scaled.groups is not None else np.empty(0, np.int32)
        kind, bits = kernel_kind(scaled.codes)
        decode_rows(
            kind,
            bits,
            codes,
            self._scale_row(np.arange(self.rows.start, self.rows.stop)) - self._scale_rows.start,
            scaled.block[1],
            self._checked(groups),
            np.ascontiguousarray(scales),
            zero_points,
            np.empty(grid.columns, np.uint8),
            out.view(OUT_BITS[self.layer.dtype]).reshape(len(self.rows), grid.columns),
        )
        itemsize, first = DTYPES[self.layer.dtype].itemsize, self.rows.start * grid.columns
        return out[(self.start - first) * itemsize : (self.stop - first) * itemsize]

    def _scale_row(self, rows: np.ndarray) -> np.ndarray:
        """int64: the row of scales, counted over all matrices, of each row of codes."""
        grid = self.grid
        if grid.single_scale:
            return np.zeros_like(rows)
        found: np.ndarray = rows // grid.rows * grid.scale_rows + rows % grid.rows // self.scaled.block[0]
        return found

    @property
    def _scale_rows(self) -> range:
        first, last = self._scale_row(np.array([self.rows.start, self.rows.stop - 1])).tolist()
        return range(first, last + 1)

    @property
    def _zero_point_rows(self) -> range:
        """The rows of `zero_points` as it is stored that hold those of `_scale_rows`."""
        rows, place = self._scale_rows, self.scaled.zero_points
        if place is None or place.dtype == "int8":
            return rows
        return range(self._word_row(rows.start), self._word_row(rows.stop - 1) + 1)

    def _word_row(self, scale_row: int) -> int:
        bits, grid = PACKED_BITS[self.scaled.codes], self.grid
        words = -(-grid.scale_rows * bits // _WORD_BITS)
        return scale_row // grid.scale_rows * words + scale_row % grid.scale_rows * bits // _WORD_BITS

    def _zero_points(self, found: np.ndarray, place: Place) -> np.ndarray:
        """int8 or int32 [scale rows, groups]."""
        if place.dtype == "int8":
            return found.view(np.int8).reshape(-1, self.grid.scale_columns)
        words = found.view("<u4").reshape(-1, self.grid.scale_columns)
        bits, rows = PACKED_BITS[self.scaled.codes], self._scale_rows
        at = np.array([self._word_row(row) for row in rows]) - self._zero_point_rows.start
        shifts = np.arange(rows.start, rows.stop) % self.grid.scale_rows * bits % _WORD_BITS
        unsigned: np.ndarray = (words[at] >> shifts[:, None].astype(np.uint32)) & np.uint32((1 << bits) - 1)
        return unsigned.astype(np.int32) - (1 << (bits - 1))

    def _checked(self, groups: np.ndarray) -> np.ndarray:
        """groups, which a kernel takes as indices; none where -1 says that the columns are in order after all."""
        if groups.size and groups.min() == -1:
            return groups[:0]
        if groups.size and not 0 <= groups.min() <= groups.max() < self.grid.scale_columns:
            message = (
                f"its g_idx has groups beyond its {self.grid.scale_columns} scales a row; download it again"
            )
            raise InvalidCheckpoint(message, layer=self.layer.name, uri=self.layer.uri)
        return groups


def kernel_kind(codes: str) -> tuple[int, int]:
    """The kernels' number of a kind of codes, and its bits."""
    from arrowquant_dist.kernels import sources

    kinds = {
        "float8_e4m3fn": sources.E4M3,
        "float8_e5m2": sources.E5M2,
        "int8": sources.INT8,
        E2M1: sources.E2M1,
    }
    return kinds.get(codes, sources.PACKED), PACKED_BITS.get(codes, 8)


def _rows_of(place: Place, rows: range, columns: int) -> Piece:
    """Rows of a stored tensor that is seen as a matrix of so many columns."""
    row_nbytes = columns * place.itemsize
    start = place.offset + rows.start * row_nbytes
    return Piece(place.uri, start, start + len(rows) * row_nbytes, place.itemsize)
