"""One scale for a whole tensor: what has to be known of all its values before the first one is quantized.

A layer cut into row blocks is read twice: a TensorSpan is taken of each block, they add up to the layer's, in any order
to the same result, and its scale then quantizes every block.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.tensor.source import as_float32, kernel_bits

_RATIOS = np.linspace(
    0.02, 1.0, 50
)  # clipping ratios that the search for the least squared error starts from
_STEPS = 8


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
    histogram: np.ndarray | None = field(default=None)

    def add(self, values: np.ndarray, dtype: str, spec: QuantSpec) -> None:
        """values: uint8 [nbytes], finite values of a float dtype."""
        from arrowquant_dist.kernels.spans import span

        bits = kernel_bits(values, dtype)
        if not bits.size:
            return
        low, high = span(bits)
        self.low = min(self.low, float(low))
        self.high = max(self.high, float(high))
        if spec.method == "mse":
            counts = np.bincount(_bfloat16_bits(values, dtype), minlength=1 << 16)
            self.histogram = counts if self.histogram is None else self.histogram + counts

    def scale(self, spec: QuantSpec) -> TensorScale:
        """The scale that `spec` chooses for these values."""
        qmin, qmax = -(1 << (spec.bits - 1)), (1 << (spec.bits - 1)) - 1
        if spec.method == "mse" and self.histogram is not None and self.low < self.high:
            scale, zero_point = _least_squares(self.histogram, spec, qmin, qmax)
            return TensorScale(scale, zero_point)
        return self._rtn(spec, np.float32(qmin), np.float32(qmax))

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


def _least_squares(histogram: np.ndarray, spec: QuantSpec, qmin: int, qmax: int) -> tuple[float, float]:
    """Scale and zero point of least squared error over a weighted set of values: starts, then alternating steps in
    float64, sums in numpy's fixed order."""
    codes = np.flatnonzero(histogram)
    weight = histogram[codes].astype(np.float64)
    x = (codes.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    low, high = float(x.min()), float(x.max())
    middle = 0.0 if spec.symmetric else (low + high) / 2
    half = max(abs(low), abs(high)) if spec.symmetric else (high - low) / 2
    best = (-1.0, 1.0, 0.0)
    for ratio in _RATIOS:
        start = ratio * half / ((qmax - qmin) / 2)
        for scale in (start, -start) if spec.symmetric else (start,):
            zero_point = 0.0 if spec.symmetric else (qmin + qmax) / 2 - middle / scale
            best = max(best, _descend(x, weight, scale, zero_point, spec.symmetric, qmin, qmax))
    return _rounded(best[1], best[2], spec, qmin, qmax)


def _descend(
    x: np.ndarray,
    weight: np.ndarray,
    scale: float,
    zero_point: float,
    symmetric: bool,
    qmin: int,
    qmax: int,  # noqa: FBT001
) -> tuple[float, float, float]:
    """(gain, scale, zero_point) after alternating least squares from one start."""
    count = weight.sum()
    found = (-1.0, scale, zero_point)
    for _ in range(_STEPS):
        q = np.clip(np.rint(x / scale + zero_point), qmin, qmax)
        wq = weight * q
        mean_q = 0.0 if symmetric else wq.sum() / count
        mean_x = 0.0 if symmetric else (weight * x).sum() / count
        variance = (wq * q).sum() - count * mean_q * mean_q
        covariance = (wq * x).sum() - count * mean_q * mean_x
        if variance <= 0.0 or covariance == 0.0 or covariance**2 / variance <= found[0]:
            break
        scale = covariance / variance
        zero_point = 0.0 if symmetric else mean_q - mean_x / scale
        found = (covariance**2 / variance, scale, zero_point)
    return found


def _rounded(scale: float, zero_point: float, spec: QuantSpec, qmin: int, qmax: int) -> tuple[float, float]:
    from arrowquant_dist.kernels.mse import short_float

    if spec.integer_zero_points and not spec.symmetric:
        zero_point = float(min(max(np.rint(zero_point), qmin), qmax))
    return float(short_float(scale)), float(np.float32(zero_point))
