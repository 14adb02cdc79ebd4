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

import numpy as np

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.errors import UnquantizableWeights
from arrowquant_dist.methods.groups import code_limits, error_sums
from arrowquant_dist.methods.method import NOTHING, Found, Given, TensorScale
from arrowquant_dist.methods.mse import Mse
from arrowquant_dist.methods.per_tensor import TensorSpan
from arrowquant_dist.methods.short_scales import ShortScales
from arrowquant_dist.methods.statistics import TILE, LayerStatistics, Prepared, Statistics

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
    columns, found, sums = bits.shape[1], [], np.zeros(4)
    group = min(spec.stored_group_size or columns, columns)
    scratch = np.empty((TILE, columns), np.uint8)
    start, each = given.row_start, statistics.rows_each
    for first, stop in _tiles(start, start + bits.shape[0], each):
        own = slice(first - start, stop - start)
        prepared = statistics.of(first // each)
        tile = _Tile(bits[own])
        if prepared.is_seen:
            tile.correct(prepared, statistics.residual(first, stop - first))
        scales, zero_points = choose(tile.target())
        rounded = tile.round(prepared, scales, zero_points, group, spec)
        pack_and_measure(bits[own], group, scales, zero_points, rounded, spec.bits, scratch, codes[own], sums)
        found.append((scales.reshape(-1), zero_points.reshape(-1)))
    scales, zero_points = map(np.concatenate, zip(*found, strict=True))
    return Found(scales, zero_points, error_sums(bits.size, sums))


def _tiles(start: int, stop: int, rows_each: int) -> Iterator[tuple[int, int]]:
    """[first, stop) of rows that are worked on together: of one matrix. What becomes of a row does not depend on the
    others, see kernels/multiply.py."""
    while start < stop:
        end = min(stop, start + TILE, (start // rows_each + 1) * rows_each)
        yield start, end
        start = end


class _Tile:
    """Some rows of weights on their way to codes; arrays are [columns, rows]."""

    def __init__(self, bits: np.ndarray) -> None:
        """bits: source bits [rows, columns]."""
        from arrowquant_dist.kernels.gptq import load_columns
        from arrowquant_dist.kernels.multiply import scratch_size

        self._rows, columns = bits.shape
        self._values = np.empty((columns, self._rows), np.float32)
        self._scratch = np.empty(scratch_size(self._rows), np.float32)
        load_columns(bits, self._values)

    def correct(self, prepared: Prepared, residual: np.ndarray | None) -> None:
        """Values become their target. residual: D of these rows, float32 [rows, columns]."""
        from arrowquant_dist.kernels.gptq import load_columns

        if prepared.correction is None and residual is None:
            return
        moved = np.zeros_like(self._values)
        if residual is not None:
            residual.flags.writeable = False
            load_columns(residual.view("<i4"), moved)
        if prepared.correction is not None:
            self._add_turned(prepared.correction, 0, self._values, moved)
        moved = moved[prepared.order]
        prepared.factor.solve(moved)
        self._values[prepared.order] += moved

    def target(self) -> np.ndarray:
        """float32 [rows, columns]"""
        from arrowquant_dist.kernels.gptq import rows_of

        found = np.empty(self._values.shape[::-1], np.float32)
        rows_of(self._values, found)
        found.flags.writeable = False  # as kernels take what is given them: one compilation serves both
        return found

    def round(
        self, prepared: Prepared, scales: np.ndarray, zero_points: np.ndarray, group: int, spec: QuantSpec
    ) -> np.ndarray:
        """uint8 [columns, rows], the codes, signed ones in two's complement. scales: float32 [rows, groups];
        zero_points: as many, or [rows, 0]. group: columns a scale."""
        from arrowquant_dist.kernels.gptq import round_columns

        factor, order = prepared.factor, prepared.order
        by_group = np.ascontiguousarray(scales.T), _or_zeros(zero_points, scales)
        errors, carried, groups = self._values[order], np.zeros_like(self._values), order // group
        codes = np.empty(errors.shape, np.uint8)
        for start, stop in reversed(factor.blocks):
            own = slice(start, stop)
            some = errors[own], carried[own], groups[own]
            round_columns(factor.lower, start, *some, *by_group, *code_limits(spec), codes[own])
            self._add_turned(factor.lower, start, errors[own], carried[:start])
        found = np.empty_like(codes)
        found[order] = codes
        return found

    def _add_turned(self, left: np.ndarray, first: int, right: np.ndarray, out: np.ndarray) -> None:
        """out += leftᵀ @ right, of the rows of `left` from `first` on."""
        from arrowquant_dist.kernels.multiply import add_product

        add_product(left, 0, first, True, np.float32(1.0), right, out, 0, self._rows, self._scratch)  # noqa: FBT003


def _or_zeros(zero_points: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float32 [groups, rows] of [rows, groups], or of none."""
    if not zero_points.shape[1]:
        return np.zeros(scales.shape[::-1], np.float32)
    return np.ascontiguousarray(zero_points.T)
