"""Values whose codes are stored in the order of the values, row after row, with scales for blocks of rows and columns.

x = (code - zero point) · scale (affine codes: code · scale + bias), in float32, rounded once to the layer's dtype. The
codes are matrices of `rows` × `columns`, one for each index of the layer's leading dimensions, from the layer's
`offset` on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from arrowquant_dist.arena import Allocate
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.encodings.encoding import Source, SourceRange, Stored
from arrowquant_dist.encodings.global_scale import FACTOR_ROW_NBYTES, GlobalScale
from arrowquant_dist.encodings.place import Place
from arrowquant_dist.encodings.zero_points import BesideScales
from arrowquant_dist.errors import InvalidCheckpoint, counted
from arrowquant_dist.kernels.code_kinds import E2M1, E4M3, E5M2
from arrowquant_dist.storage.uris import redact
from arrowquant_dist.tensor.source import as_float32

OUT_BITS = {"float32": "<i4", "bfloat16": "<u2", "float16": "<i2"}  # integers that stand for bits in kernels

_SCALE_NBYTES = 4  # as float32
_ZERO_POINT_NBYTES = 16  # each as a word, shifted, as an integer and as float32
# For each kind of float codes, the bits of a byte that are not signs: of one 8-bit code, or of two 4-bit codes.
_MAGNITUDES = {E4M3: np.uint8(0x7F), E5M2: np.uint8(0x7F), E2M1: np.uint8(0x77)}
_ROW_NBYTES = 24  # its number and its row of scales, int64, and an intermediate array

Block = tuple[int, int]  # (rows, columns) of a matrix that share a scale


@dataclass(frozen=True, slots=True)
class Codes:
    """What the codes are. kind: one of kernels/code_kinds.py. bits: number of bits of a code."""

    kind: int
    bits: int


@dataclass(frozen=True, slots=True)
class Grid:
    """The matrices of codes and of scales of one layer: sizes that follow from its shape and its blocks."""

    rows: int
    columns: int
    row_nbytes: int
    block: Block
    scale_rows: int
    scale_columns: int
    single_scale: bool

    @classmethod
    def of(cls, matrix: tuple[int, int], row_nbytes: int, block: Block, scales: Place) -> Grid:
        """matrix: (rows, columns) of codes. row_nbytes: bytes of a row of codes. block: rows and columns that share a
        scale. scales: one for each block in C order, matrix after matrix, or a single one for all."""
        (rows, columns), (block_rows, block_columns) = matrix, block
        return cls(
            rows,
            columns,
            row_nbytes,
            block,
            -(-rows // block_rows),
            -(-columns // block_columns),
            math.prod(scales.shape) == 1,
        )


@dataclass(frozen=True, slots=True)
class RowSlice:
    """Values [start, stop) of a layer: what to read, then how to decode it.

    groups: int32 [columns], the scale of each column; None if groups are runs of columns.
    Memory: the codes of the rows that the values lie in, their scales, and the rows' values.
    """

    layer: Stored
    start: int
    stop: int
    codes: Codes
    grid: Grid
    scales: Place
    zero_points: BesideScales | None = None
    groups: Place | None = None
    global_scale: GlobalScale | None = None

    @property
    def rows(self) -> range:
        """The rows of codes, counted over all matrices, that hold the values."""
        if self.start >= self.stop:
            return range(0)
        return range(self.start // self.grid.columns, -(-self.stop // self.grid.columns))

    @property
    def decoded_nbytes(self) -> int:
        """Size in bytes of all values of `rows`."""
        return len(self.rows) * self.grid.columns * DTYPES[self.layer.dtype].itemsize

    @property
    def beside_nbytes(self) -> int:
        """The scales as float32, a second time if multiplied with a global scale, the zero points while they are
        converted to float32, and the row of scales of each row."""
        if not self.rows:
            return 0
        scales = len(self._scale_rows) * self.grid.scale_columns
        zero_points = scales if self.zero_points is not None else 0
        if self.global_scale is not None:
            scales = 2 * scales + FACTOR_ROW_NBYTES // _SCALE_NBYTES * len(self._scale_rows)
        return _SCALE_NBYTES * scales + _ZERO_POINT_NBYTES * zero_points + _ROW_NBYTES * len(self.rows)

    @property
    def ranges(self) -> list[SourceRange]:
        """Codes and scales, then zero points, groups and global scale if there are any. Empty if `rows` is empty."""
        rows, grid, layer = self.rows, self.grid, self.layer
        if not rows:
            return []
        first, last = (layer.offset + row * grid.row_nbytes for row in (rows.start, rows.stop))
        found = [
            SourceRange(layer.uri, first, last, 1),
            _rows_of(self.scales, self._scale_rows, grid.scale_columns),
        ]
        if self.zero_points is not None:
            stored = self.zero_points.stored_rows(self._scale_rows)
            columns = self.zero_points.stored_columns(grid.scale_columns)
            found.append(_rows_of(self.zero_points.place, stored, columns))
        if self.groups is not None:
            found.append(_rows_of(self.groups, range(1), grid.columns))
        if self.global_scale is not None:
            found.append(self.global_scale.source_range)
        return found

    def values(self, found: Sequence[np.ndarray], _source: Source, allocate: Allocate) -> np.ndarray:
        from arrowquant_dist.kernels.sources import decode_rows

        out = allocate(self.decoded_nbytes)
        if not found:
            return out
        grid, scale_rows, rest = self.grid, self._scale_rows, iter(found)
        codes, scales, zero_points = self.stored(rest)
        groups = next(rest).view("<i4") if self.groups is not None else np.empty(0, np.int32)
        shared = scales[0, 0] if grid.single_scale else 1.0
        if self.global_scale is not None:
            scales, shared = self.global_scale.applied(scales, next(rest), scale_rows)
        if self.codes.kind in _MAGNITUDES:
            check_factors(scales, shared, codes, self.codes.kind, self.layer)
        decode_rows(
            self.codes.kind,
            self.codes.bits,
            codes,
            self.rows_of_scales,
            grid.block[1],
            self._checked(groups),
            np.ascontiguousarray(scales),
            zero_points,
            np.empty(grid.columns, np.uint8),
            out.view(OUT_BITS[self.layer.dtype]).reshape(len(self.rows), grid.columns),
        )
        itemsize, first = DTYPES[self.layer.dtype].itemsize, self.rows.start * grid.columns
        return out[(self.start - first) * itemsize : (self.stop - first) * itemsize]

    def stored(self, found: Iterator[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(codes, scales, zero points), taken from `found`, which yields the bytes of `ranges`.

        codes: uint8 [rows, row bytes]. scales: float32 [scale rows, scales per row]. zero points: float32, in the shape
        of the scales, or [scale rows, 0] if there are none."""
        scale_rows, columns = self._scale_rows, self.grid.scale_columns
        codes = next(found).reshape(len(self.rows), self.grid.row_nbytes)
        scales = as_float32(next(found), self.scales.dtype).reshape(-1, columns)
        if self.zero_points is None:
            return codes, scales, np.empty((len(scales), 0), np.float32)
        return codes, scales, self.zero_points.decode(next(found), scale_rows, columns)

    @property
    def rows_of_scales(self) -> np.ndarray:
        """int64 [rows]: index of each row's scales among the scale rows that are read."""
        found: np.ndarray = (
            self._scale_row(np.arange(self.rows.start, self.rows.stop)) - self._scale_rows.start
        )
        return found

    def _scale_row(self, rows: np.ndarray) -> np.ndarray:
        """int64: the row of scales, counted over all matrices, of each row of codes."""
        grid = self.grid
        if grid.single_scale:
            return np.zeros_like(rows)
        found: np.ndarray = rows // grid.rows * grid.scale_rows + rows % grid.rows // grid.block[0]
        return found

    @property
    def _scale_rows(self) -> range:
        first, last = self._scale_row(np.array([self.rows.start, self.rows.stop - 1])).tolist()
        return range(first, last + 1)

    def _checked(self, groups: np.ndarray) -> np.ndarray:
        """The groups after a check, since kernels use them as indices; empty if -1 says that columns are in order."""
        if groups.size and groups.min() == -1:
            return groups[:0]
        if groups.size and not 0 <= groups.min() <= groups.max() < self.grid.scale_columns:
            scales = counted(self.grid.scale_columns, "scale")
            message = f"its g_idx refers to groups beyond its {scales} per row; download it again"
            raise InvalidCheckpoint(message, layer=self.layer.name, uri=self.layer.uri)
        return groups


def check_factors(scales: np.ndarray, shared: float, codes: np.ndarray, kind: int, layer: Stored) -> None:
    """Raises InvalidCheckpoint for scales of float codes that no library writes: negative ones, or a single scale of 0
    for codes that are not all 0. NaN and inf are not checked here: they lead to values that are found later.

    scales: float32. shared: the scale that all codes share, 1 if there is none (a block's own scale may be 0 if its
    values are nearly nothing). codes: uint8, those of the values to decode. kind: E4M3, E5M2, or E2M1, two to a byte.
    """
    if scales.min() < 0:
        wrong = "some of its scales are negative"
    elif shared == 0 and (codes & _MAGNITUDES[kind]).any():
        wrong = "its scale is 0, but its codes are not all 0"
    else:
        return
    message = f"{wrong}; download the file again, or use the model that it was made from"
    raise InvalidCheckpoint(message, layer=layer.name, uri=redact(layer.uri))


def matrix_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, columns) of each of the matrices whose stack is a layer of `shape`, which is at least 1-D."""
    return shape[-2] if len(shape) > 1 else 1, shape[-1]


def values_of(layer: Stored, rows: range) -> tuple[int, int]:
    """(start, stop) of the values of the layer's rows, which are counted over all its matrices."""
    return rows.start * layer.shape[-1], rows.stop * layer.shape[-1]


def _rows_of(place: Place, rows: range, columns: int) -> SourceRange:
    """The byte range of rows of a stored tensor seen as a matrix with so many columns."""
    row_nbytes = columns * place.itemsize
    start = place.offset + rows.start * row_nbytes
    return SourceRange(place.uri, start, start + len(rows) * row_nbytes, place.itemsize)
