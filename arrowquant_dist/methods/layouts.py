"""`gptq` of layers stored [in, out], as GPT-2's Conv1D and gpt-oss' experts are, beside those that are [out, in].

Groups run along a stored row, which of such a layer has one input and all outputs: a scale is then one input's, for
some or all outputs. Errors of one input are made up for by the inputs that come after it, so rows follow each other
here as columns do in gptq.py, in the order of the Hessian's diagonal, and outputs are independent of each other. What
differs is that scales are chosen for rows of the target across all outputs, and that a row's codes depend on all rows
before it: a matrix is one piece, which no row block divides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.methods.gptq import (
    Choose,
    ErrorCompensated,
    ErrorCompensatedPerTensor,
    Rounding,
    TargetTile,
    one_scale,
    rounding_of,
)
from arrowquant_dist.methods.groups import code_limits, error_sums
from arrowquant_dist.methods.method import Found, Given
from arrowquant_dist.methods.per_tensor import TensorSpan
from arrowquant_dist.methods.statistics import TILE, LayerStatistics, Prepared


class EitherLayout:
    """`gptq` by row or group, along the axis that the layer's statistics are of."""

    name = "gptq"
    side_input = ErrorCompensated.side_input

    def quantize(self, bits: np.ndarray, spec: QuantSpec, codes: np.ndarray, given: Given, /) -> Found | None:
        """See Method.quantize."""
        if given.side.is_by_rows:
            return _quantize(bits, spec, codes, given, rounding_of(spec))
        return ErrorCompensated().quantize(bits, spec, codes, given)


class EitherLayoutPerTensor:
    """The same with one scale for the tensor."""

    name = "gptq"
    side_input = ErrorCompensated.side_input

    def span(self, spec: QuantSpec, /) -> TensorSpan:
        """See TensorMethod.span."""
        return ErrorCompensatedPerTensor().span(spec)

    def quantize(self, bits: np.ndarray, spec: QuantSpec, codes: np.ndarray, given: Given, /) -> Found | None:
        """See Method.quantize."""
        if not given.side.is_by_rows:
            return ErrorCompensatedPerTensor().quantize(bits, spec, codes, given)
        scale = given.scale
        if scale is None:
            span = self.span(spec)
            span.add(bits)
            scale = span.scale()
        found = _quantize(bits, spec, codes, given, one_scale(spec, scale))
        if found is None:
            return None
        return replace(found, scales=found.scales[:1].copy(), zero_points=found.zero_points[:1].copy())


def _quantize(
    bits: np.ndarray, spec: QuantSpec, codes: np.ndarray, given: Given, choose: Choose
) -> Found | None:
    """As Method.quantize. bits: of whole matrices [in, out], one below the other."""
    from arrowquant_dist.kernels.spans import first_non_finite

    if first_non_finite(bits) >= 0:
        return None
    statistics: LayerStatistics = given.side
    found, sums = [], np.zeros(4)
    each = statistics.rows_each
    for start in range(0, len(bits), each):
        own, row = slice(start, start + each), given.row_start + start
        prepared = statistics.of(row // each)
        matrix = _Matrix(bits[own], prepared, statistics.residual(row, each) if prepared.is_seen else None)
        rounding = choose(matrix.target(), prepared)
        matrix.quantize(rounding, spec, codes[own], sums)
        found.append((rounding.scales.reshape(-1), rounding.zero_points.reshape(-1)))
    scales, zero_points = map(np.concatenate, zip(*found, strict=True))
    return Found(scales, zero_points, error_sums(bits.size, sums))


class _Matrix:
    """One matrix [in, out] on its way to codes, as tiles of some outputs each."""

    def __init__(self, bits: np.ndarray, prepared: Prepared, residual: np.ndarray | None) -> None:
        """bits: source bits [in, out], finite. residual: float32 [in, out], E[x̃ (r - r̃)ᵀ]."""
        self._bits = bits
        self._tiles = [
            TargetTile(
                _turned(bits[:, own]), prepared, None if residual is None else _turned(residual[:, own])
            )
            for own in self._spans()
        ]

    def _spans(self) -> Iterator[slice]:
        outputs = self._bits.shape[1]
        return (slice(start, min(start + TILE, outputs)) for start in range(0, outputs, TILE))

    def target(self) -> np.ndarray:
        """float32 [in, out]"""
        found = np.empty(self._bits.shape, np.float32)
        for own, tile in zip(self._spans(), self._tiles, strict=True):
            found[:, own] = tile.target().T
        found.flags.writeable = False  # as kernels take what is given them: one compilation serves both
        return found

    def quantize(self, rounding: Rounding, spec: QuantSpec, codes: np.ndarray, sums: np.ndarray) -> None:
        """rounding: of the stored rows. codes: uint8 [in, row bytes], written. sums: as of TargetTile.quantize."""
        from arrowquant_dist.kernels.gptq import pack_and_measure

        inputs, outputs = self._bits.shape
        chosen = np.empty((outputs, inputs), np.uint8)
        for own, tile in zip(self._spans(), self._tiles, strict=True):
            chosen[own] = tile.rounded(_ToLevels.of(rounding, spec, own)).T
        scratch = np.empty((min(TILE, inputs), outputs), np.uint8)
        pack_and_measure(
            self._bits,
            rounding.group,
            rounding.scales,
            rounding.zero_points,
            chosen,
            spec.bits,
            scratch,
            codes,
            sums,
        )


@dataclass(frozen=True, slots=True, eq=False)
class _ToLevels:
    """A gptq.Rounds of some outputs. scales, zero_points: float32 [in, outputs], each value's own."""

    spec: QuantSpec
    scales: np.ndarray
    zero_points: np.ndarray

    @classmethod
    def of(cls, rounding: Rounding, spec: QuantSpec, own: slice) -> _ToLevels:
        """rounding: of the stored rows. own: the outputs."""
        groups = np.arange(own.start, own.stop) // rounding.group
        scales = np.ascontiguousarray(rounding.scales[:, groups])
        if not rounding.zero_points.shape[1]:
            return cls(spec, scales, np.zeros_like(scales))
        return cls(spec, scales, np.ascontiguousarray(rounding.zero_points[:, groups]))

    def round(
        self, prepared: Prepared, start: int, errors: np.ndarray, carried: np.ndarray, codes: np.ndarray
    ) -> None:
        """See gptq.Rounds.round."""
        from arrowquant_dist.kernels.gptq import round_columns

        inputs = prepared.order[start : start + len(codes)]
        limits = code_limits(self.spec)
        round_columns(
            prepared.factor.lower,
            start,
            errors,
            carried,
            inputs,
            self.scales,
            self.zero_points,
            *limits,
            codes,
        )


def _turned(values: np.ndarray) -> np.ndarray:
    """[out, in] of [in, out], read-only as a method is given its values."""
    found = np.ascontiguousarray(values.T)
    if found.base is not None:  # a single row or column, which is contiguous either way
        found = found.copy()
    found.flags.writeable = False
    return found
