"""One scale for a whole tensor, which depends on all its values before the first one can be quantized.

A layer that is cut into row blocks is read twice: first each block is added to a TensorSpan, with the same result in
any order, then every block is quantized with the span's scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.methods.groups import code_limits, error_sums
from arrowquant_dist.methods.least_squares import is_worse, least_squares
from arrowquant_dist.methods.method import Found, Given, TensorScale
from arrowquant_dist.methods.short_scales import short_scales, short_zero_points

# Magnitudes for which float32 has room for every scale and decoded value; for others the rtn scale is used.
_SMALLEST, _LARGEST = 1e-30, 1e37
_BFLOAT16_STEP = 2.0**-8  # relative distance between neighbouring bfloat16 numbers, at most
_COUNTED_AT_ONCE = 1 << 18  # values: numpy makes several int64 of each
_NO_ZERO_POINTS = np.empty(0, np.float32)


class PerTensor:
    """`rtn` or `mse` with one scale for the tensor. name: which of the two."""

    side_input = None

    def __init__(self, name: str) -> None:
        self.name = name

    def span(self, spec: QuantSpec, /) -> TensorSpan:
        """See TensorMethod.span."""
        return TensorSpan(spec)

    def quantize(self, bits: np.ndarray, spec: QuantSpec, codes: np.ndarray, given: Given, /) -> Found | None:
        """See Method.quantize."""
        from arrowquant_dist.kernels.quantize import quantize_with_scale
        from arrowquant_dist.kernels.spans import first_non_finite

        if first_non_finite(bits) >= 0:
            return None
        scale = given.scale
        if scale is None:
            span = self.span(spec)
            span.add(bits)
            scale = span.scale()
        scales = np.array([scale.scale], np.float32)
        zero_points = _NO_ZERO_POINTS if spec.symmetric else np.array([scale.zero_point], np.float32)
        scratch, sums = np.empty(bits.shape[1], np.uint8), np.zeros(4)
        quantize_with_scale(bits, scales, zero_points, *code_limits(spec), spec.bits, codes, scratch, sums)
        return Found(scales, zero_points, error_sums(bits.size, sums))


@dataclass(slots=True)
class TensorSpan:
    """Minimum, maximum and, for `mse`, a histogram of a tensor's values rounded to bfloat16 (int64 [65536], exact).

    remainders: int64 [65536], for each bfloat16 number b the sum of |x| - |b| over the values x that were rounded to
    it, in halves of float32's unit in the last place; None if rounding has changed no value.
    """

    spec: QuantSpec
    low: float = np.inf
    high: float = -np.inf
    histogram: np.ndarray | None = None
    remainders: np.ndarray | None = None

    def add(self, bits: np.ndarray) -> None:
        """Adds a row block. bits: as in Method.quantize, but of any shape. A block with NaN or inf adds nothing: such a
        block is kept unquantized."""
        from arrowquant_dist.kernels.spans import span

        if not bits.size:
            return
        bits = bits.reshape(-1)
        low, high = span(bits)
        if not (np.isfinite(low) and np.isfinite(high)):
            return
        self.low = min(self.low, float(low))
        self.high = max(self.high, float(high))
        if self.spec.method == "mse":
            if self.histogram is None:
                self.histogram = np.zeros(1 << 16, np.int64)
            for start in range(0, bits.size, _COUNTED_AT_ONCE):
                self._count(self.histogram, bits[start : start + _COUNTED_AT_ONCE])

    def scale(self) -> TensorScale:
        """The scale that the spec chooses for these values."""
        chosen = self._chosen()
        if self.spec.scale_dtype == "float32":
            return chosen
        scale, zero_point = (np.array([value], np.float32) for value in (chosen.scale, chosen.zero_point))
        rounded = short_scales(scale, self.spec.scale_dtype)
        zero_point = short_zero_points(zero_point, scale, rounded, self.spec)
        return TensorScale(float(rounded[0]), float(zero_point[0]))

    def _chosen(self) -> TensorScale:
        qmin, qmax = code_limits(self.spec)
        rtn = self._rtn(qmin, qmax)
        if self.histogram is not None and self._is_resolved():
            found = least_squares(self.histogram, rtn, self.spec, int(qmin), int(qmax))
            if not is_worse(self.histogram, self.remainders, found, rtn, qmin, qmax):
                return found
        return rtn

    def _count(self, histogram: np.ndarray, bits: np.ndarray) -> None:
        some = _bfloat16_bits(bits)
        histogram += np.bincount(some, minlength=1 << 16)
        if bits.dtype == np.dtype("<u2"):
            return
        left = _remainders(bits, some)
        if left.any():
            if self.remainders is None:
                self.remainders = np.zeros(1 << 16, np.int64)
            # bincount sums in float64, which is exact here: at most 2^18 numbers below 2^17
            self.remainders += np.bincount(some, left, 1 << 16).astype(np.int64)

    def _is_resolved(self) -> bool:
        """Whether bfloat16 resolves the step between codes, and all values are well within float32's range."""
        top = max(abs(self.low), abs(self.high))
        width = 2 * top if self.spec.symmetric else self.high - self.low
        is_wide = width / ((1 << self.spec.bits) - 1) > top * _BFLOAT16_STEP
        return self.low < self.high and _SMALLEST < top < _LARGEST and is_wide

    def _rtn(self, qmin: np.float32, qmax: np.float32) -> TensorScale:
        from arrowquant_dist.kernels.rtn import asymmetric_scale, symmetric_scale, whole_asymmetric_scale

        low, high = np.float32(self.low), np.float32(self.high)
        if self.spec.symmetric:
            return TensorScale(float(symmetric_scale(max(abs(low), abs(high)), qmax)), 0.0)
        choose = whole_asymmetric_scale if self.spec.integer_zero_points else asymmetric_scale
        scale, zero_point = choose(low, high, qmin, qmax)
        return TensorScale(float(scale), float(zero_point))


def _bfloat16_bits(bits: np.ndarray) -> np.ndarray:
    """bits: source bits [n] of finite values. Returns the bfloat16 bits of each as uint16, rounded half to even."""
    if bits.dtype == np.dtype("<u2"):
        return bits
    wide = _float32_bits(bits)
    rounded = (wide.astype(np.uint64) + 0x7FFF + ((wide >> 16) & 1)) >> 16
    overflow = (rounded & 0x7F80) == 0x7F80  # rounded up to inf: take the largest finite number instead
    return np.where(overflow, rounded - 1, rounded).astype(np.uint16)


def _remainders(bits: np.ndarray, rounded: np.ndarray) -> np.ndarray:
    """int64 [n]: |x| - |b| for the bfloat16 number b that x was rounded to, in halves of float32's unit in the last
    place at b. Just below a power of two this unit is half as large as above it."""
    left = _float32_bits(bits).astype(np.int64) - (rounded.astype(np.int64) << 16)
    is_power = (rounded & 0x7F) == 0
    return np.where(is_power & (left < 0), left, 2 * left)


def _float32_bits(bits: np.ndarray) -> np.ndarray:
    wide = bits if bits.dtype == np.dtype("<i4") else bits.view("<f2").astype(np.float32)
    return wide.view("<u4")
