"""float8 codes with a scale for each block, row, matrix or tensor: x = code · scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from arrowquant_dist.encodings.encoding import Encoding, Stored
from arrowquant_dist.encodings.place import Place
from arrowquant_dist.encodings.rows import Block, Codes, Grid, RowSlice, matrix_of
from arrowquant_dist.kernels.code_kinds import E4M3, E5M2

FLOAT8_CODES = {"float8_e4m3fn": Codes(E4M3, 8), "float8_e5m2": Codes(E5M2, 8)}


@dataclass(frozen=True, slots=True)
class Float8Blocks(Encoding):
    """codes: dtype of the codes, one of FLOAT8_CODES. block: rows and columns that share a scale. scales: as in
    `Grid.of`."""

    codes: str
    block: Block
    scales: Place
    kind: ClassVar[str] = "float8"
    may_be_a_copy: ClassVar[bool] = True

    @property
    def label(self) -> str:
        return f"{self.codes} codes and scales"

    @property
    def places(self) -> tuple[Place, ...]:
        return (self.scales,)

    def slice(self, layer: Stored, start: int, stop: int) -> RowSlice:
        matrix = matrix_of(layer.shape)
        grid = Grid.of(matrix, matrix[1], self.block, self.scales)
        return RowSlice(layer, start, stop, FLOAT8_CODES[self.codes], grid, self.scales)
