"""Integers of 2, 4 or 8 bits in int32 words (compressed-tensors' pack-quantized): x = (code - zero point) · scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from arrowquant_dist.config.spec import NotKept, QuantSpec
from arrowquant_dist.encodings.encoding import Encoding, Source, Stored
from arrowquant_dist.encodings.kept import KeptRowSlice, grid_spec
from arrowquant_dist.encodings.place import Place, present
from arrowquant_dist.encodings.rows import Block, Codes, Grid, RowSlice, matrix_of, values_of
from arrowquant_dist.encodings.zero_points import WORD_BITS, ZeroPoints
from arrowquant_dist.kernels.code_kinds import PACKED

PACKED_BITS = (2, 4, 8)
_WORD_NBYTES = WORD_BITS // 8


@dataclass(frozen=True, slots=True)
class PackedInts(Encoding):
    """Codes in offset binary, low bits first, each row in whole int32 words.

    bits: bits of a code, one of PACKED_BITS. block: rows and columns that share a scale. scales: as in `Grid.of`.
    zero_points: int8 in the scales' shape, or int32 words packed along the rows' dimension; None if all are 0.
    groups: int32 [columns], the scale of each column; None if groups are runs of columns.
    """

    bits: int
    block: Block
    scales: Place
    zero_points: Place | None
    groups: Place | None
    kind: ClassVar[str] = "packed"
    may_be_a_copy: ClassVar[bool] = True

    @property
    def label(self) -> str:
        return f"packed{self.bits} codes and scales"

    @property
    def places(self) -> tuple[Place, ...]:
        return present(self.scales, self.zero_points, self.groups)

    def slice(self, layer: Stored, start: int, stop: int) -> RowSlice:
        matrix = matrix_of(layer.shape)
        row_nbytes = words_of(matrix[1], self.bits) * _WORD_NBYTES
        grid = Grid.of(matrix, row_nbytes, self.block, self.scales)
        zero_points = ZeroPoints.of(self.zero_points, self.bits, grid.scale_rows)
        codes = Codes(PACKED, self.bits)
        return RowSlice(layer, start, stop, codes, grid, self.scales, zero_points, self.groups)

    def kept_spec(self, layer: Stored, source: Source) -> QuantSpec | NotKept:
        made = self.slice(layer, 0, 0)
        return grid_spec(made, self.bits, source, symmetric=self.zero_points is None)

    def kept_slice(self, layer: Stored, rows: range, spec: QuantSpec) -> KeptRowSlice:
        return KeptRowSlice.of(self.slice(layer, *values_of(layer, rows)), spec)


def words_of(columns: int, bits: int) -> int:
    """Number of int32 words in a row of codes."""
    return -(-columns * bits // WORD_BITS)
