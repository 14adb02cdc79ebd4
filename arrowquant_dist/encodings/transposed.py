"""Layers whose rows are the columns of the stored codes: MXFP4 as in gpt-oss' experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from arrowquant_dist.arena import Allocate
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.encodings.encoding import (
    Encoding,
    Source,
    SourceRange,
    Stored,
)
from arrowquant_dist.encodings.microscaled import E2M1_CODES, GROUP, GROUP_CODES_NBYTES, e2m1_grid
from arrowquant_dist.encodings.place import Place
from arrowquant_dist.encodings.rows import OUT_BITS, Grid, matrix_of
from arrowquant_dist.encodings.strided import WINDOW_NBYTES, gather
from arrowquant_dist.tensor.source import as_float32

_SCALE_NBYTES = 4  # as float32
# Padding values between a tile's rows, which would map to the same cache sets if they had 2^n bytes: with padding,
# codes of any width are decoded at 1.1 Gparam/s.
_PADDING = 32


@dataclass(frozen=True, slots=True)
class TransposedMicroscaled(Encoding):
    """Like Microscaled, but the layer's rows are the columns of each stored matrix. scales: those of stored rows."""

    scales: Place
    kind: ClassVar[str] = "transposed_microscaled"
    batches_ahead: ClassVar[int] = 1
    may_be_a_copy: ClassVar[bool] = True

    @property
    def label(self) -> str:
        return "e2m1 codes and scales"

    @property
    def places(self) -> tuple[Place, ...]:
        return (self.scales,)

    def slice(self, layer: Stored, start: int, stop: int) -> TransposedSlice:
        columns, rows = matrix_of(layer.shape)
        return TransposedSlice(layer, start, stop, e2m1_grid((rows, columns), self.scales), self.scales)


@dataclass(frozen=True, slots=True)
class TransposedSlice:
    """Values [start, stop) of a transposed layer. grid: that of the stored matrices.

    Memory: the rows' codes, scales and values, and 16 MiB.
    """

    layer: Stored
    start: int
    stop: int
    grid: Grid
    scales: Place
    ranges: ClassVar[Sequence[SourceRange]] = ()

    @property
    def rows(self) -> range:
        """The layer's rows, counted over all its matrices, that hold the values."""
        if self.start >= self.stop:
            return range(0)
        return range(self.start // self.grid.rows, -(-self.stop // self.grid.rows))

    @property
    def decoded_nbytes(self) -> int:
        """Size in bytes of all values of `rows`."""
        return len(self.rows) * self.grid.rows * DTYPES[self.layer.dtype].itemsize

    @property
    def beside_nbytes(self) -> int:
        """The codes and scales of whole groups of columns, of one matrix at a time, and the window to gather them."""
        groups = min(len(self.rows) // GROUP + 2, self.grid.scale_columns)
        of_group = GROUP_CODES_NBYTES + self.scales.itemsize + _SCALE_NBYTES
        return self.grid.rows * groups * of_group + WINDOW_NBYTES

    def values(self, _found: Sequence[np.ndarray], source: Source, allocate: Allocate) -> np.ndarray:
        rows, width, itemsize = self.rows, self.grid.rows, DTYPES[self.layer.dtype].itemsize
        out = allocate(self.decoded_nbytes)
        values = out.view(OUT_BITS[self.layer.dtype]).reshape(len(rows), width)
        row = rows.start
        while row < rows.stop:
            matrix, column = divmod(row, self.grid.columns)
            columns = range(column, min(column + rows.stop - row, self.grid.columns))
            self._decode(matrix, columns, source, values[row - rows.start :][: len(columns)])
            row += len(columns)
        first = rows.start * width
        return out[(self.start - first) * itemsize : (self.stop - first) * itemsize]

    def _decode(self, matrix: int, columns: range, source: Source, out: np.ndarray) -> None:
        """Decodes columns of one matrix of codes to bits [columns, rows] in `out`."""
        from arrowquant_dist.kernels.sources import TILE_ROWS, decode_columns

        grid, scales = self.grid, self.scales
        groups = range(columns.start // GROUP, -(-columns.stop // GROUP))
        codes = _column_bytes(
            (self.layer.uri, self.layer.offset),
            (matrix, grid.rows, grid.row_nbytes),
            _times(groups, GROUP_CODES_NBYTES),
            source,
        )
        found = _column_bytes(
            (scales.uri, scales.offset),
            (matrix, grid.rows, grid.scale_columns * scales.itemsize),
            _times(groups, scales.itemsize),
            source,
        )
        decode_columns(
            E2M1_CODES.kind,
            codes,
            GROUP,
            as_float32(found.reshape(-1), scales.dtype).reshape(grid.rows, -1),
            np.empty(len(groups) * GROUP, np.uint8),
            np.empty((TILE_ROWS, len(groups) * GROUP + _PADDING), out.dtype),
            columns.start - groups.start * GROUP,
            out,
        )


def _column_bytes(
    place: tuple[str, int], matrix: tuple[int, int, int], columns: range, source: Source
) -> np.ndarray:
    """uint8 [rows, columns]: some bytes of each row of a stored matrix.

    place: (URI, offset) of the first matrix. matrix: (index of the matrix, rows, bytes of a row). columns: which bytes
    of a row.
    """
    (uri, offset), (index, rows, row_nbytes) = place, matrix
    start = offset + index * rows * row_nbytes + columns.start
    found = np.empty((rows, len(columns)), np.uint8)
    every = range(found.size)
    gather(partial(source.read_into, uri), start, found.shape, (row_nbytes, 1), 1, every, found.reshape(-1))
    return found


def _times(span: range, factor: int) -> range:
    return range(span.start * factor, span.stop * factor)
