"""MXFP4: 4-bit floats (e2m1), two per byte, with a power of two as the scale of each 32 values of a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from arrowquant_dist.encodings.encoding import Encoding, Stored
from arrowquant_dist.encodings.place import Place
from arrowquant_dist.encodings.rows import Codes, Grid, RowSlice, matrix_of
from arrowquant_dist.kernels.code_kinds import E2M1

GROUP = 32  # values of a row that share a scale
GROUP_CODES_NBYTES = 16  # bytes of a group's codes
E2M1_CODES = Codes(E2M1, 4)


@dataclass(frozen=True, slots=True)
class Microscaled(Encoding):
    """The low four bits of a byte are the first value. scales: […, rows, groups], of float8_e8m0fnu."""

    scales: Place
    kind: ClassVar[str] = "microscaled"
    may_be_a_copy: ClassVar[bool] = True

    @property
    def label(self) -> str:
        return "e2m1 codes and scales"

    @property
    def places(self) -> tuple[Place, ...]:
        return (self.scales,)

    def slice(self, layer: Stored, start: int, stop: int) -> RowSlice:
        return RowSlice(
            layer, start, stop, E2M1_CODES, e2m1_grid(matrix_of(layer.shape), self.scales), self.scales
        )


def e2m1_grid(matrix: tuple[int, int], scales: Place) -> Grid:
    """matrix: (rows, columns) of codes."""
    return Grid.of(matrix, -(-matrix[1] // 2), (1, GROUP), scales)
