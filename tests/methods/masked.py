"""A method that needs a side input: columns whose weight is 0 are stored as zeros. As small as such a method can be."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.methods import Found, Given
from arrowquant_dist.methods.rtn import Rtn

WORK_NBYTES = 12345


class ColumnWeights:
    config_field = "hessians"

    def __init__(self) -> None:
        self.prepared = 0

    def shapes(self, layer_shape: tuple[int, ...], row_dims: int) -> Mapping[str, tuple[int, ...]]:
        return {"columns": (math.prod(layer_shape[row_dims:]),)}

    def prepare(self, tensors: Mapping[str, np.ndarray], spec: QuantSpec) -> np.ndarray:
        self.prepared += 1
        assert spec.method == "masked"
        assert tensors["columns"].dtype == np.float32
        kept: np.ndarray = tensors["columns"] != 0.0
        return kept

    def work_nbytes(self, rows: int, columns: int) -> int:
        return WORK_NBYTES * rows + columns


class Masked:
    name = "masked"

    def __init__(self) -> None:
        self.side_input = ColumnWeights()
        self.rows: list[int] = []

    def quantize(self, bits: np.ndarray, spec: QuantSpec, codes: np.ndarray, given: Given, /) -> Found | None:
        self.rows.append(given.row_start)
        return Rtn().quantize(np.where(given.side, bits, np.zeros_like(bits)), spec, codes, given)
