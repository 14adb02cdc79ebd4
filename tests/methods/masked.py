"""A minimal method that needs a side input: columns whose weight is 0 are stored as zeros."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.methods import Found, Given, PartReader
from arrowquant_dist.methods.rtn import Rtn

WORK_NBYTES = 12345


class ColumnWeights:
    config_field = "hessians"
    finished_by: str | None = None
    format_version: int | None = None
    is_of_weights = False
    exempt = ("unknown",)

    def __init__(self) -> None:
        self.prepared = 0
        self.parts: set[str] = set()

    def needed(self, _spec: QuantSpec) -> tuple[str, ...]:
        return ("columns",)

    def rows_together(self, _layer_shape: tuple[int, ...], _row_dims: int, _parts: Collection[str], /) -> int:
        return 1

    def instead(self, spec: QuantSpec) -> QuantSpec:
        return replace(spec, method="rtn")

    def shapes(self, layer_shape: tuple[int, ...], row_dims: int) -> Mapping[str, tuple[int, ...]]:
        columns = math.prod(layer_shape[row_dims:])
        return {"columns": (columns,), "more": (2, columns)}

    def prepare(
        self, layer: str, layer_shape: tuple[int, ...], row_dims: int, read: PartReader, /
    ) -> np.ndarray:
        self.prepared += layer != ""  # without a name it is a sample for which kernels are compiled
        self.parts |= {*read.parts}
        found = read("columns", 0, math.prod(layer_shape[row_dims:]))
        assert found.dtype == np.float32
        if "more" in read.parts:
            found *= read("more", found.size, 2 * found.size)
        kept: np.ndarray = found != 0.0
        return kept

    def work_nbytes(
        self, _layer_shape: tuple[int, ...], _row_dims: int, rows: int, parts: Collection[str], /
    ) -> int:
        return WORK_NBYTES * rows + len(parts)


class Masked:
    name = "masked"

    def __init__(self) -> None:
        self.side_input = ColumnWeights()
        self.rows: list[int] = []

    def quantize(self, bits: np.ndarray, spec: QuantSpec, codes: np.ndarray, given: Given, /) -> Found | None:
        if bits.shape[1] > 2:
            self.rows.append(given.row_start)
        return Rtn().quantize(np.where(given.side, bits, np.zeros_like(bits)), spec, codes, given)
