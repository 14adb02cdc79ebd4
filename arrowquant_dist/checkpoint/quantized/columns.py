"""Values of a layer whose rows are the columns of the stored codes (gpt-oss' experts): e2m1 with a scale each 32."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from arrowquant_dist.arena import Allocate
from arrowquant_dist.checkpoint.quantized.read import OUT_BITS, Slice, kernel_kind
from arrowquant_dist.checkpoint.strided import gather
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.tensor.source import as_float32

_PADDING = 32  # values between a tile's rows: rows of 2^n bytes would share the cache's sets

ReadInto = Callable[[str, int, np.ndarray], None]  # (uri, offset, uint8 out)


@dataclass(frozen=True, slots=True)
class TransposedSlice(Slice):
    """Of a transposed layer. Memory: the rows' codes, scales and values, and 16 MiB."""

    def read(self, read_into: ReadInto, allocate: Allocate) -> np.ndarray:
        """uint8 [(stop - start) · itemsize], in memory from `allocate`."""
        if self.start >= self.stop:
            return np.empty(0, np.uint8)
        width, itemsize = self.grid.rows, DTYPES[self.layer.dtype].itemsize
        first, last = self.start // width, -(-self.stop // width)
        out = allocate((last - first) * width * itemsize)
        values = out.view(OUT_BITS[self.layer.dtype]).reshape(last - first, width)
        row = first
        while row < last:
            matrix, column = divmod(row, self.grid.columns)
            columns = range(column, min(column + last - row, self.grid.columns))
            self._decode(matrix, columns, read_into, values[row - first : row - first + len(columns)])
            row += len(columns)
        return out[(self.start - first * width) * itemsize : (self.stop - first * width) * itemsize]

    def _decode(self, matrix: int, columns: range, read_into: ReadInto, out: np.ndarray) -> None:
        """Columns of one matrix of codes → bits [columns, rows]."""
        from arrowquant_dist.kernels.sources import TILE_ROWS, decode_columns

        grid, group, scales = self.grid, self.scaled.block[1], self.scaled.scales
        groups = range(columns.start // group, -(-columns.stop // group))
        codes = _column_bytes(
            (self.layer.uri, self.layer.offset),
            (matrix, grid.rows, grid.row_nbytes),
            _times(groups, group // 2),
            read_into,
        )
        found = _column_bytes(
            (scales.uri, scales.offset),
            (matrix, grid.rows, grid.scale_columns * scales.itemsize),
            _times(groups, scales.itemsize),
            read_into,
        )
        kind, _ = kernel_kind(self.scaled.codes)
        decode_columns(
            kind,
            codes,
            group,
            as_float32(found.reshape(-1), scales.dtype).reshape(grid.rows, -1),
            np.empty(len(groups) * group, np.uint8),
            np.empty((TILE_ROWS, len(groups) * group + _PADDING), out.dtype),
            columns.start - groups.start * group,
            out,
        )


def _column_bytes(
    place: tuple[str, int], matrix: tuple[int, int, int], columns: range, read_into: ReadInto
) -> np.ndarray:
    """uint8 [rows, columns]: some bytes of each row of a stored matrix.

    place: URI and offset of the first matrix. matrix: (which, rows, bytes of a row).
    """
    (uri, offset), (index, rows, row_nbytes) = place, matrix
    start = offset + index * rows * row_nbytes + columns.start
    window = (rows, len(columns))
    return gather(
        lambda at, buffer: read_into(uri, at, buffer),
        start,
        window,
        (row_nbytes, 1),
        1,
        range(math.prod(window)),
    ).reshape(window)


def _times(span: range, factor: int) -> range:
    return range(span.start * factor, span.stop * factor)
