"""int8 codes (compressed-tensors' int-quantized): x = (code - zero point) · scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from arrowquant_dist.config.spec import NotKept, QuantSpec
from arrowquant_dist.encodings.encoding import Encoding, Source, Stored
from arrowquant_dist.encodings.kept import KeptRowSlice, grid_spec
from arrowquant_dist.encodings.place import Place, present
from arrowquant_dist.encodings.rows import Block, Codes, Grid, RowSlice, matrix_of, values_of
from arrowquant_dist.encodings.zero_points import ZeroPoints
from arrowquant_dist.kernels.code_kinds import INT8

_BITS = 8


@dataclass(frozen=True, slots=True)
class Int8(Encoding):
    """block: rows and columns that share a scale. scales: as in `Grid.of`. zero_points: int8 in the scales' shape; None
    if all are 0. groups: int32 [columns], the scale of each column; None if groups are runs of columns."""

    block: Block
    scales: Place
    zero_points: Place | None
    groups: Place | None
    kind: ClassVar[str] = "int8"
    may_be_a_copy: ClassVar[bool] = True

    @property
    def label(self) -> str:
        return "int8 codes and scales"

    @property
    def places(self) -> tuple[Place, ...]:
        return present(self.scales, self.zero_points, self.groups)

    def slice(self, layer: Stored, start: int, stop: int) -> RowSlice:
        matrix = matrix_of(layer.shape)
        grid = Grid.of(matrix, matrix[1], self.block, self.scales)
        zero_points = ZeroPoints.of(self.zero_points, _BITS, grid.scale_rows)
        return RowSlice(layer, start, stop, Codes(INT8, _BITS), grid, self.scales, zero_points, self.groups)

    def kept_spec(self, layer: Stored, source: Source) -> QuantSpec | NotKept:
        return grid_spec(self.slice(layer, 0, 0), _BITS, source, symmetric=self.zero_points is None)

    def kept_slice(self, layer: Stored, rows: range, spec: QuantSpec) -> KeptRowSlice:
        return KeptRowSlice.of(self.slice(layer, *values_of(layer, rows)), spec)
