"""One scale for a whole tensor: what has to be known of all its values before the first one is quantized.

A layer cut into row blocks is read twice: a TensorSpan is taken of each block, they add up to the layer's, in any order
to the same result, and its scale then quantizes every block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.tensor.source import as_float32, kernel_bits, read_only

# Clipping ratios that the search for the least squared error starts from, and its steps from each.
_RATIOS = np.linspace(0.02, 1.0, 50)
_STEPS = 8
# Where float32 has room for every scale and decoded value; elsewhere the rtn scale serves.
_SMALLEST, _LARGEST = 1e-30, 1e37
_BFLOAT16_STEP = 2.0**-8  # of a value: the distance to the next bfloat16, at most

# (squares explained, scale, zero point): the more is explained, the less the squared error. A Fit is of (values, their
# weights, codes).
Fitted = tuple[float, float, float]
Fit = Callable[[np.ndarray, np.ndarray, np.ndarray], Fitted | None]


@dataclass(frozen=True, slots=True)
class TensorScale:
    """The one scale and zero point (0 where symmetric) of a tensor, float32 values."""

    scale: float
    zero_point: float


@dataclass(slots=True)
class TensorSpan:
    """Minimum, maximum and, for `mse`, a histogram of a tensor's values rounded to bfloat16 (int64 [65536], exact)."""

    low: float = np.inf
    high: float = -np.inf
    histogram: np.ndarray | None = None

    def add(self, values: np.ndarray, dtype: str, spec: QuantSpec) -> None:
        """values: uint8 [nbytes] of a float dtype. Values with NaN or inf among them add nothing: they are kept."""
        from arrowquant_dist.kernels.spans import span

        bits = read_only(kernel_bits(values, dtype))
        if not bits.size:
            return
        low, high = span(bits)
        if not (np.isfinite(low) and np.isfinite(high)):
            return
        self.low = min(self.low, float(low))
        self.high = max(self.high, float(high))
        if spec.method == "mse":
            counts = np.bincount(_bfloat16_bits(values, dtype), minlength=1 << 16)
            self.histogram = counts if self.histogram is None else self.histogram + counts

    def scale(self, spec: QuantSpec) -> TensorScale:
        """The scale that `spec` chooses for these values."""
        qmin, qmax = -(1 << (spec.bits - 1)), (1 << (spec.bits - 1)) - 1
        rtn = self._rtn(spec, np.float32(qmin), np.float32(qmax))
        if self.histogram is not None and self._is_resolved(spec):
            return _least_squares(self.histogram, rtn, spec, qmin, qmax)
        return rtn

    def _is_resolved(self, spec: QuantSpec) -> bool:
        """Whether bfloat16 tells values apart that are a step of the codes apart, well within float32's range."""
        top = max(abs(self.low), abs(self.high))
        width = 2 * top if spec.symmetric else self.high - self.low
        is_wide = width / ((1 << spec.bits) - 1) > top * _BFLOAT16_STEP
        return self.low < self.high and _SMALLEST < top < _LARGEST and is_wide

    def _rtn(self, spec: QuantSpec, qmin: np.float32, qmax: np.float32) -> TensorScale:
        from arrowquant_dist.kernels.rtn import asymmetric_scale, symmetric_scale, whole_asymmetric_scale

        low, high = np.float32(self.low), np.float32(self.high)
        if spec.symmetric:
            return TensorScale(float(symmetric_scale(max(abs(low), abs(high)), qmax)), 0.0)
        choose = whole_asymmetric_scale if spec.integer_zero_points else asymmetric_scale
        scale, zero_point = choose(low, high, qmin, qmax)
        return TensorScale(float(scale), float(zero_point))


def _bfloat16_bits(values: np.ndarray, dtype: str) -> np.ndarray:
    """The high 16 bits of each value as float32, rounded half to even; finite values only."""
    if dtype == "bfloat16":
        return values.view("<u2")
    bits = as_float32(values, dtype).view("<u4")
    rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16
    overflow = (rounded & 0x7F80) == 0x7F80  # rounded up to inf: stay below
    return np.where(overflow, rounded - 1, rounded).astype(np.uint16)


def _least_squares(
    histogram: np.ndarray, rtn: TensorScale, spec: QuantSpec, qmin: int, qmax: int
) -> TensorScale:
    """The scale of least squared error over a weighted set of values: starts, then alternating steps in float64."""
    from arrowquant_dist.kernels.mse import short_float

    bits = np.flatnonzero(histogram)
    weight = histogram[bits].astype(np.float64)
    x = (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    fit = _through_zero if spec.symmetric else _with_offset
    found = []
    for scale, zero_point in _starts(float(x.min()), float(x.max()), spec, qmin, qmax):
        found.append(_descend(fit, x, weight, scale, zero_point, qmin, qmax))
    _, scale, zero_point = max(found)
    if spec.integer_zero_points:
        scale, zero_point = _whole(x, weight, TensorScale(scale, zero_point), rtn, qmin, qmax)
    return TensorScale(float(short_float(scale)), float(np.float32(zero_point)))


def _starts(low: float, high: float, spec: QuantSpec, qmin: int, qmax: int) -> Iterator[tuple[float, float]]:
    """Pairs of scale and zero point: the range clipped by each ratio; symmetric ones also turned round."""
    for ratio in _RATIOS:
        if spec.symmetric:
            scale = ratio * max(abs(low), abs(high)) / ((qmax - qmin) / 2)
            yield scale, 0.0
            yield -scale, 0.0
        else:
            scale = ratio * (high - low) / (qmax - qmin)
            yield scale, (qmin + qmax) / 2 - (low + high) / 2 / scale


def _whole(
    x: np.ndarray, weight: np.ndarray, real: TensorScale, rtn: TensorScale, qmin: int, qmax: int
) -> tuple[float, float]:
    """Scale and zero point with whole zero points next to the real one's: through zero, on levels moved by them."""
    found = []
    for zero_point in {np.floor(real.zero_point), np.ceil(real.zero_point), rtn.zero_point}:
        held = float(np.clip(zero_point, qmin, qmax))
        for start in (real.scale, rtn.scale):
            gain, scale, _ = _descend(_through_zero, x, weight, start, 0.0, qmin - held, qmax - held)
            found.append((gain, scale, held))
    _, scale, zero_point = max(found)
    return scale, zero_point


def _descend(
    fit: Fit, x: np.ndarray, weight: np.ndarray, scale: float, zero_point: float, qmin: float, qmax: float
) -> Fitted:
    """Alternates rounding and fitting from one start, as long as the error falls."""
    best = (-1.0, scale, zero_point)
    for _ in range(_STEPS):
        fitted = fit(x, weight, np.clip(np.rint(x / best[1] + best[2]), qmin, qmax))
        if fitted is None or fitted[0] <= best[0]:
            break
        best = fitted
    return best


def _through_zero(x: np.ndarray, weight: np.ndarray, q: np.ndarray) -> Fitted | None:
    """x ≈ scale · q; None where no scale is better than another."""
    squares = float((weight * q * q).sum())
    product = float((weight * q * x).sum())
    return (product**2 / squares, product / squares, 0.0) if product != 0.0 else None


def _with_offset(x: np.ndarray, weight: np.ndarray, q: np.ndarray) -> Fitted | None:
    """x ≈ scale · (q - zero_point)."""
    count = weight.sum()
    mean_q = float((weight * q).sum() / count)
    mean_x = float((weight * x).sum() / count)
    variance = float((weight * q * q).sum() - count * mean_q**2)
    covariance = float((weight * q * x).sum() - count * mean_q * mean_x)
    if variance <= 0.0 or covariance == 0.0:
        return None
    scale = covariance / variance
    return covariance**2 / variance, scale, mean_q - mean_x / scale
