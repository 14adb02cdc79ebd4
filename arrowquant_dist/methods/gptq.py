"""Error-compensated rounding: each column's codes make up for the errors of those before, by the inputs' Hessian.

With H = E[x xᵀ] of a layer's inputs x, the output's error is tr(E H Eᵀ) for errors E = W* - Ŵ of the weights. Let
H + λI = L D Lᵀ, L with ones on its diagonal. Then the error is Σ_k D_k |E_k + Σ_{i>k} E_i L_ik|², and columns are
rounded from the last to the first, each for the sum that is known by then: q_k = round(w*_k + Σ_{i>k} E_i L_ik). That
is what GPTQ (arXiv 2210.17323) computes with a Cholesky factor of the inverse, here by one factorization, without an
inverse.

The last column is the one of the largest diagonal (act-order), and groups are those of the columns as they are stored
(static groups): scales and zero points are `mse`'s for the target W*, chosen before anything is rounded.

W* = W + [W (C - H) + D] (H + λI)⁻¹ where the statistics of a sequential calibration have C = E[x x̃ᵀ], and D = E[(r - r̃)
x̃ᵀ] of layers that write to the residual stream: x, r are the original's, x̃, r̃ those of the quantized model so far, and
H is of x̃. So W* is what comes nearest to the original's output on the inputs that the layer will get. It is another
matrix than W: the errors that are reported, which are of W, are larger than mse's, and are meant to be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.errors import UnquantizableWeights
from arrowquant_dist.methods.groups import code_limits, error_sums
from arrowquant_dist.methods.method import NOTHING, Found, Given, TensorScale
from arrowquant_dist.methods.mse import Mse
from arrowquant_dist.methods.per_tensor import TensorSpan
from arrowquant_dist.methods.short_scales import ShortScales
from arrowquant_dist.methods.statistics import TILE, LayerStatistics, Prepared, Statistics

if TYPE_CHECKING:
    from arrowquant_dist.kernels.factor import Factor

# float32 [rows, columns] of a target → scales [rows, groups], and zero points as many, or [rows, 0] where symmetric
_Choose = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class ErrorCompensated:
    """`gptq` by row or group, with `mse`'s scales of the target."""

    name = "gptq"
    side_input = Statistics()

    def quantize(self, bits: np.ndarray, spec: QuantSpec, codes: np.ndarray, given: Given, /) -> Found | None:
        """See Method.quantize."""
        return _quantize(bits, spec, codes, given, _by_group(replace(spec, method="mse")))


class ErrorCompensatedPerTensor:
    """`gptq` with one scale for the tensor, `mse`'s of the values themselves: of the target no two tiles are there at
    once."""

    name = "gptq"
    side_input = ErrorCompensated.side_input

    def span(self, spec: QuantSpec, /) -> TensorSpan:
        """See TensorMethod.span."""
        return TensorSpan(replace(spec, method="mse"))

    def quantize(self, bits: np.ndarray, spec: QuantSpec, codes: np.ndarray, given: Given, /) -> Found | None:
        """See Method.quantize."""
        scale = given.scale
        if scale is None:
            span = self.span(spec)
            span.add(bits)
            scale = span.scale()
        found = _quantize(bits, spec, codes, given, _for_all(spec, scale))
        return (
            None
            if found is None
            else replace(found, scales=found.scales[:1].copy(), zero_points=found.zero_points[:1].copy())
        )


def _by_group(spec: QuantSpec) -> _Choose:
    """spec: of the method that chooses."""
    from arrowquant_dist.kernels.pack import packed_nbytes

    method = Mse() if spec.scale_dtype == "float32" else ShortScales(Mse())

    def choose(target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows, columns = target.shape
        codes = np.empty((rows, packed_nbytes(columns, spec.bits)), np.uint8)
        found = method.quantize(target.view("<i4"), spec, codes, NOTHING)
        if found is None:
            raise UnquantizableWeights(
                "its target, corrected for the quantized inputs, is beyond float32; add it to mixed_precision_layers"
            )
        return found.scales.reshape(rows, -1), found.zero_points.reshape(rows, -1)

    return choose


def _for_all(spec: QuantSpec, scale: TensorScale) -> _Choose:
    def choose(target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = target.shape[0]
        zero_points = np.full((rows, 0 if spec.symmetric else 1), scale.zero_point, np.float32)
        return np.full((rows, 1), scale.scale, np.float32), zero_points

    return choose


def _quantize(
    bits: np.ndarray, spec: QuantSpec, codes: np.ndarray, given: Given, choose: _Choose
) -> Found | None:
    """As Method.quantize."""
    from arrowquant_dist.kernels.gptq import pack_and_measure
    from arrowquant_dist.kernels.spans import first_non_finite

    if first_non_finite(bits) >= 0:
        return None
    statistics: LayerStatistics = given.side
    tile, found, sums = _Tile(spec, bits.shape[1]), [], np.zeros(4)
    start, each = given.row_start, statistics.rows_each
    for first, stop in _tiles(start, start + bits.shape[0], each):
        rows = slice(first - start, stop - start)
        prepared = statistics.of(first // each)
        tile.load(bits[rows], first % each % TILE)
        if prepared.is_seen:
            tile.correct(prepared, statistics.residual(first, stop - first))
        scales, zero_points = choose(tile.target())
        tile.round(prepared.factor, prepared.order, scales, zero_points)
        packed = (bits[rows], tile.group, scales, zero_points, *tile.rounded, spec.bits)
        pack_and_measure(*packed, tile.scratch, codes[rows], sums)
        found.append((scales.reshape(-1), zero_points.reshape(-1)))
    scales, zero_points = map(np.concatenate, zip(*found, strict=True))
    return Found(scales, zero_points, error_sums(bits.size, sums))


def _tiles(start: int, stop: int, rows_each: int) -> Iterator[tuple[int, int]]:
    """[first, stop) of rows that lie in one tile of one matrix. Tiles begin at fixed rows of it, so that each row has
    the same place in its tile whatever the row blocks: what BLAS rounds differently at another place is the same."""
    while start < stop:
        matrix = start // rows_each * rows_each
        tile = matrix + (start - matrix) // TILE * TILE
        end = min(stop, tile + TILE, matrix + rows_each)
        yield start, end
        start = end


class _Tile:
    """Some rows of weights on their way to codes; arrays are [columns, TILE], rows that are not there are zeros."""

    def __init__(self, spec: QuantSpec, columns: int) -> None:
        self.group = min(spec.stored_group_size or columns, columns)
        self.limits = code_limits(spec)
        self._values = np.empty((columns, TILE), np.float32)
        self._carried = np.empty((columns, TILE), np.float32)
        self._codes = np.empty((columns, TILE), np.uint8)
        self.scratch = np.empty((TILE, columns), np.uint8)
        self._first = self._rows = 0

    @property
    def rounded(self) -> tuple[np.ndarray, int]:
        """The codes, uint8 [columns, TILE], and where the rows' own begin."""
        return self._codes, self._first

    def load(self, bits: np.ndarray, first: int) -> None:
        """bits: source bits [rows, columns], whose place in the tile begins at `first`."""
        from arrowquant_dist.kernels.gptq import load_columns

        self._first, self._rows = first, bits.shape[0]
        if self._rows < TILE:
            self._values[:] = 0.0
        load_columns(bits, first, self._values)

    def correct(self, prepared: Prepared, residual: np.ndarray | None) -> None:
        """Values become their target. residual: D of these rows, float32 [rows, columns]."""
        from arrowquant_dist.kernels.factor import add_product
        from arrowquant_dist.kernels.gptq import load_columns

        if prepared.correction is None and residual is None:
            return
        moved = self._carried
        moved[:] = 0.0
        if residual is not None:
            load_columns(residual.view("<i4"), self._first, moved)
        if prepared.correction is not None:
            add_product(prepared.correction.T, self._values, moved)
        moved = moved[prepared.order]
        prepared.factor.solve(moved)
        self._values[prepared.order] += moved

    def target(self) -> np.ndarray:
        """float32 [rows, columns] of the rows that are there."""
        from arrowquant_dist.kernels.gptq import turn

        found = np.empty((self._rows, self._values.shape[0]), np.float32)
        turn(self._values[:, self._first :], found)
        return found

    def round(self, factor: Factor, order: np.ndarray, scales: np.ndarray, zero_points: np.ndarray) -> None:
        """Chooses the codes. scales: float32 [rows, groups]; zero_points: as many, or [rows, 0]."""
        from arrowquant_dist.kernels.factor import add_product
        from arrowquant_dist.kernels.gptq import round_columns

        by_group = self._by_group(scales, 1.0), self._by_group(zero_points, 0.0)
        errors, carried, groups = self._values[order], self._carried, order // self.group
        codes = np.empty_like(self._codes)
        carried[:] = 0.0
        for start, stop in reversed(factor.blocks):
            own = slice(start, stop)
            square = factor.lower[own, own]
            round_columns(square, errors[own], carried[own], groups[own], *by_group, *self.limits, codes[own])
            add_product(factor.lower[own, :start].T, errors[own], carried[:start])
        self._codes[order] = codes

    def _by_group(self, numbers: np.ndarray, missing: float) -> np.ndarray:
        """float32 [groups, TILE] of [rows, groups]."""
        groups = -(-self._values.shape[0] // self.group)
        found = np.full((groups, TILE), missing, np.float32)
        if numbers.shape[1]:
            found[:, self._first : self._first + self._rows] = numbers.T
        return found
