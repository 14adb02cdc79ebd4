"""Unsigned integers with a scale and a bias for each group of a row, as MLX stores them: x = code · scale + bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from arrowquant_dist.encodings.encoding import Encoding, Stored
from arrowquant_dist.encodings.packed import words_of
from arrowquant_dist.encodings.place import Place, present
from arrowquant_dist.encodings.rows import Codes, Grid, RowSlice, matrix_of
from arrowquant_dist.encodings.zero_points import Biases
from arrowquant_dist.kernels.code_kinds import AFFINE

AFFINE_BITS = range(1, 9)
_WORD_NBYTES = 4


@dataclass(frozen=True, slots=True)
class Affine(Encoding):
    """Codes, dense from the low bits up, in uint32 words […, rows, columns · bits / 32].

    bits: bits of a code, one of AFFINE_BITS. group: number of columns that share a scale. scales, biases: floats
    […, rows, groups]."""

    bits: int
    group: int
    scales: Place
    biases: Place
    kind: ClassVar[str] = "affine"
    may_be_a_copy: ClassVar[bool] = True

    @property
    def label(self) -> str:
        return f"MLX's {self.bits}-bit codes, scales and biases"

    @property
    def places(self) -> tuple[Place, ...]:
        return present(self.scales, self.biases)

    def slice(self, layer: Stored, start: int, stop: int) -> RowSlice:
        matrix = matrix_of(layer.shape)
        row_nbytes = words_of(matrix[1], self.bits) * _WORD_NBYTES
        grid = Grid.of(matrix, row_nbytes, (1, self.group), self.scales)
        codes = Codes(AFFINE, self.bits)
        return RowSlice(layer, start, stop, codes, grid, self.scales, Biases(self.biases))
