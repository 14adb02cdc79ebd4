"""int8 codes with the largest magnitude of each row, as bitsandbytes stores them: x = code · SCB / 127."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from arrowquant_dist.encodings.encoding import Encoding, Stored
from arrowquant_dist.encodings.place import Place
from arrowquant_dist.encodings.rows import Codes, Grid, RowSlice, matrix_of
from arrowquant_dist.kernels.code_kinds import INT8_OF_127


@dataclass(frozen=True, slots=True)
class LlmInt8(Encoding):
    """maxima: floats [rows], the value that code 127 stands for in each row (SCB)."""

    maxima: Place
    kind: ClassVar[str] = "llm_int8"
    may_be_a_copy: ClassVar[bool] = True

    @property
    def label(self) -> str:
        return "bitsandbytes' int8 codes"

    @property
    def places(self) -> tuple[Place, ...]:
        return (self.maxima,)

    def slice(self, layer: Stored, start: int, stop: int) -> RowSlice:
        matrix = matrix_of(layer.shape)
        grid = Grid.of(matrix, matrix[1], (1, matrix[1]), self.maxima)
        return RowSlice(layer, start, stop, Codes(INT8_OF_127, 8), grid, self.maxima)
