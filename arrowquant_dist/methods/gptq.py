"""Error-compensated rounding: each column's codes make up for the errors of those before, by the inputs' Hessian.

With H = E[x xᵀ] of a layer's inputs x, the output's error is tr(E H Eᵀ) for errors E = W* - Ŵ of the weights. Let
H + λI = L D Lᵀ, L with ones on its diagonal. Then the error is Σ_k D_k |E_k + Σ_{i>k} E_i L_ik|², and columns are
rounded from the last to the first, each including the sum that is known by then: q_k = round(w*_k + Σ_{i>k} E_i L_ik).
GPTQ (arXiv 2210.17323) computes the same with a Cholesky factor of the inverse; here it takes one factorization and no
inverse.

The last column is the one with the largest diagonal (act-order), and groups are runs of columns as they are stored
(static groups): scales and zero points are those of `mse` for the target W*, chosen before anything is rounded.

W* = W + ¾ [W (C - H) + D] (H + λI)⁻¹ if the statistics, of a sequential calibration, contain C = E[x x̃ᵀ] and, for
layers that write to the residual stream, D = E[(r - r̃) x̃ᵀ]. Here x and r are those of the original model, x̃ and r̃
those of the model as quantized so far, and H is of x̃. With the whole bracket, W* would come closest to the original's
output on the calibration's texts; with three quarters it does so on other texts. W* is not W: the reported errors,
which are measured against W, are larger than those of mse, as intended.

Rows of an embedding are rounded with E[g gᵀ], which tells what the model's first blocks make of their errors, in place
of H (methods/sensitive.py), if the statistics have it: for MiniLM's rows, errors measured so are a third less than
those of mse, at int2, int3 and int4 alike. With it, int2 by 1,600 texts keeps an embedding cosine of .9051 on other
texts, without it .9007.

Layers that are stored [in, out] are treated in the same way along their rows, see methods/layouts.py.

With a `step` the codes are meant to be entropy coded, as in method `size`: each row has one scale, in proportion to its
row of W*, and rounding prefers codes that take few bits, see methods/coded.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.errors import UnquantizableWeights
from arrowquant_dist.methods.coded import BEYOND, InSteps
from arrowquant_dist.methods.groups import code_limits, error_sums
from arrowquant_dist.methods.layouts import matrices_of
from arrowquant_dist.methods.method import NOTHING, Found, Given, TensorScale
from arrowquant_dist.methods.mse import Mse
from arrowquant_dist.methods.per_tensor import TensorSpan
from arrowquant_dist.methods.short_scales import ShortScales
from arrowquant_dist.methods.statistics import LayerStatistics, Prepared, Statistics
from arrowquant_dist.methods.target_tiles import Rounding, tiles_of

# Chooses how a target, float32 [rows, columns], is rounded. Raises UnquantizableWeights if the target is not finite.
_Choose = Callable[[np.ndarray, Prepared], Rounding]


class ErrorCompensated:
    """`gptq` by row or group, with the scales of `mse` for the target, or with steps for entropy coding."""

    name = "gptq"
    side_input = Statistics()

    def quantize(self, bits: np.ndarray, spec: QuantSpec, codes: np.ndarray, given: Given, /) -> Found | None:
        """See Method.quantize."""
        return _quantize(bits, spec, codes, given, rounding_of(spec))


class ErrorCompensatedPerTensor:
    """`gptq` with one scale for the tensor: that of `mse` for the values themselves, not for the target, which is never
    in memory as a whole."""

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
        found = _quantize(bits, spec, codes, given, _one_scale(spec, scale))
        return (
            None
            if found is None
            else replace(found, scales=found.scales[:1].copy(), zero_points=found.zero_points[:1].copy())
        )


def rounding_of(spec: QuantSpec) -> _Choose:
    """How targets are rounded. spec: with scales by row or group."""
    return InSteps.choice(spec) if spec.step > 0.0 else _by_group(replace(spec, method="mse"))


def _by_group(spec: QuantSpec) -> _Choose:
    """spec: that of the method that chooses the scales."""
    from arrowquant_dist.kernels.pack import packed_nbytes

    method = Mse() if spec.scale_dtype == "float32" else ShortScales(Mse())

    def choose(target: np.ndarray, prepared: Prepared) -> Rounding:
        rows, columns = target.shape
        codes = np.empty((rows, packed_nbytes(columns, spec.bits)), np.uint8)
        found = method.quantize(target.view("<i4"), spec, codes, NOTHING)
        if found is None:
            raise UnquantizableWeights(BEYOND, layer=prepared.layer)
        group = min(spec.stored_group_size or columns, columns)
        return _ToLevels(spec, found.scales.reshape(rows, -1), found.zero_points.reshape(rows, -1), group)

    return choose


def _one_scale(spec: QuantSpec, scale: TensorScale) -> _Choose:
    from arrowquant_dist.kernels.spans import first_non_finite

    def choose(target: np.ndarray, prepared: Prepared) -> Rounding:
        if first_non_finite(target.view("<i4")) >= 0:
            raise UnquantizableWeights(BEYOND, layer=prepared.layer)
        rows, columns = target.shape
        zero_points = np.full((rows, 0 if spec.symmetric else 1), scale.zero_point, np.float32)
        return _ToLevels(spec, np.full((rows, 1), scale.scale, np.float32), zero_points, columns)

    return choose


@dataclass(frozen=True, slots=True, eq=False)
class _ToLevels:
    """A Rounding that gives each value the code of the nearest level."""

    spec: QuantSpec
    scales: np.ndarray
    zero_points: np.ndarray
    group: int

    def round(
        self, prepared: Prepared, start: int, errors: np.ndarray, carried: np.ndarray, codes: np.ndarray
    ) -> None:
        """See Rounds.round."""
        from arrowquant_dist.kernels.gptq import round_columns

        groups = prepared.order[start : start + len(codes)] // self.group
        levels = np.ascontiguousarray(self.scales.T), _or_zeros(self.zero_points, self.scales)
        limits = code_limits(self.spec)
        round_columns(prepared.factor.lower, start, errors, carried, groups, *levels, *limits, codes)


def _quantize(
    bits: np.ndarray, spec: QuantSpec, codes: np.ndarray, given: Given, choose: _Choose
) -> Found | None:
    """Like Method.quantize. choose: chooses how targets are rounded."""
    from arrowquant_dist.kernels.spans import first_non_finite

    if first_non_finite(bits) >= 0:
        return None
    statistics: LayerStatistics = given.side
    pieces = matrices_of(bits, given) if statistics.is_by_rows else tiles_of(bits, given)
    found, sums = [], np.zeros(4)
    for own, prepared, piece in pieces:
        rounding = choose(piece.target(), prepared)
        piece.quantize(rounding, spec, codes[own], sums)
        found.append((rounding.scales.reshape(-1), rounding.zero_points.reshape(-1)))
    scales, zero_points = map(np.concatenate, zip(*found, strict=True))
    return Found(scales, zero_points, error_sums(bits.size, sums))


def _or_zeros(zero_points: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float32 [groups, rows]: zero points [rows, groups] transposed, or zeros if there are none."""
    if not zero_points.shape[1]:
        return np.zeros(scales.shape[::-1], np.float32)
    return np.ascontiguousarray(zero_points.T)
