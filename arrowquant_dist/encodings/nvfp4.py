"""NVFP4: 4-bit floats (e2m1), two per byte, with a float8 scale for each 16 values and a float32 scale above these."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from arrowquant_dist.encodings.encoding import Encoding, Stored
from arrowquant_dist.encodings.global_scale import GlobalScale
from arrowquant_dist.encodings.microscaled import E2M1_CODES
from arrowquant_dist.encodings.place import Place, present
from arrowquant_dist.encodings.rows import Grid, RowSlice, matrix_of


@dataclass(frozen=True, slots=True)
class Nvfp4Codes(Encoding):
    """x = code · (scale · factor), or code · (scale / divisor), for any order of the codes.

    group: number of values that share a scale. factor, divisor: as in `GlobalScale`.
    """

    group: int
    scales: Place
    factor: Place | None
    divisor: Place | None
    may_be_a_copy: ClassVar[bool] = True

    @property
    def label(self) -> str:
        return "NVFP4 codes and scales"

    @property
    def places(self) -> tuple[Place, ...]:
        return present(self.scales, self.factor, self.divisor)


@dataclass(frozen=True, slots=True)
class Nvfp4(Nvfp4Codes):
    """The low four bits of a byte are the first value; groups run along a row. scales: […, rows, groups]."""

    kind: ClassVar[str] = "nvfp4"

    def slice(self, layer: Stored, start: int, stop: int) -> RowSlice:
        rows, columns = matrix_of(layer.shape)
        grid = Grid.of((rows, columns), columns // 2, (1, self.group), self.scales)
        shared = GlobalScale.of(self.factor, self.divisor, layer_rows(layer))
        return RowSlice(layer, start, stop, E2M1_CODES, grid, self.scales, global_scale=shared)


def layer_rows(layer: Stored) -> int:
    """Number of rows of all the layer's matrices."""
    return math.prod(layer.shape[:-1])
