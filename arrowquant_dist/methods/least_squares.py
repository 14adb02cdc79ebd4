"""The scale of least squared error over a set of weighted values, for tensors with a single scale.

It is computed in float64 with plain numpy, because the values come as a histogram of at most 65,536 numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.methods.method import TensorScale

# The clipping ratios that the search starts from, and the largest number of steps from each.
_RATIOS = np.linspace(0.02, 1.0, 50)
_STEPS = 8

# (sum of squares explained, scale, zero point): the more is explained, the smaller the squared error. A Fit takes
# (values, their weights, codes).
Fitted = tuple[float, float, float]
Fit = Callable[[np.ndarray, np.ndarray, np.ndarray], Fitted | None]


def least_squares(
    histogram: np.ndarray, rtn: TensorScale, spec: QuantSpec, qmin: int, qmax: int
) -> TensorScale:
    """The scale of least squared error over a weighted set of values: several starts, then alternating least squares.

    histogram: as in a TensorSpan. rtn: the scale that `rtn` chooses for the same values."""
    from arrowquant_dist.kernels.mse import short_float

    bits = np.flatnonzero(histogram)
    weight = histogram[bits].astype(np.float64)
    x = _values(bits)
    fit = _through_zero if spec.symmetric else _with_offset
    found = []
    for scale, zero_point in _starts(float(x.min()), float(x.max()), spec, qmin, qmax):
        found.append(_descend(fit, x, weight, scale, zero_point, qmin, qmax))
    _, scale, zero_point = max(found)
    if spec.integer_zero_points:
        scale, zero_point = _whole(x, weight, TensorScale(scale, zero_point), rtn, qmin, qmax)
    stored = (
        short_float(scale) if spec.bits < 8 else np.float32(scale)
    )  # like scales by row or group: see kernels/mse.py
    return TensorScale(float(stored), float(np.float32(zero_point)))


def _starts(low: float, high: float, spec: QuantSpec, qmin: int, qmax: int) -> Iterator[tuple[float, float]]:
    """Pairs of scale and zero point: the range clipped by each ratio; symmetric scales also negated."""
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
    """The best scale and whole zero point: for whole numbers next to the real zero point, and rtn's, the scale is
    fitted through zero on levels moved by the zero point."""
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
    """Fits x ≈ scale · q; None if no scale is better than another."""
    squares = float((weight * q * q).sum())
    product = float((weight * q * x).sum())
    return (product**2 / squares, product / squares, 0.0) if product != 0.0 else None


def _with_offset(x: np.ndarray, weight: np.ndarray, q: np.ndarray) -> Fitted | None:
    """Fits x ≈ scale · (q - zero_point); None if that is not determined."""
    count = weight.sum()
    mean_q = float((weight * q).sum() / count)
    mean_x = float((weight * x).sum() / count)
    variance = float((weight * q * q).sum() - count * mean_q**2)
    covariance = float((weight * q * x).sum() - count * mean_q * mean_x)
    if variance <= 0.0 or covariance == 0.0:
        return None
    scale = covariance / variance
    return covariance**2 / variance, scale, mean_q - mean_x / scale


def is_worse(
    histogram: np.ndarray,
    remainders: np.ndarray | None,
    found: TensorScale,
    rtn: TensorScale,
    qmin: np.float32,
    qmax: np.float32,
) -> bool:
    """Whether Σ(x - x̂)² may be larger with `found` than with `rtn`. histogram, remainders: those of a TensorSpan.

    A value b + r that was counted as b and gets b's code adds (b + r - x̂)² = (b - x̂)² + 2r(b - x̂) + r². Σr is known
    for each b, and Σr² is the same for both scales. If another code is nearer to b + r, the error is smaller than that:
    this is ignored for `found`, while for `rtn` all values counted as b are taken to lie where it saves most.
    """
    bits = np.flatnonzero(histogram)
    b = _values(bits)
    count = histogram[bits].astype(np.float64)
    unit = _half_units(bits)
    left = np.zeros(b.size) if remainders is None else remainders[bits] * unit
    ours, theirs = (_error_at(b, _codes(b, scale, qmin, qmax), scale) for scale in (found, rtn))
    excess = count * (ours**2 - theirs**2) + 2.0 * left * (ours - theirs)
    if remainders is not None:
        codes = _codes(b, rtn, qmin, qmax)
        for edge in (b - 65536.0 * unit, b + 65536.0 * unit):
            other = _codes(edge, rtn, qmin, qmax)
            saved = _error_at(edge, codes, rtn) ** 2 - _error_at(edge, other, rtn) ** 2
            excess += count * np.where(other != codes, np.maximum(saved, 0.0), 0.0)
    return float(excess.sum()) > 0.0


def _codes(x: np.ndarray, scale: TensorScale, qmin: np.float32, qmax: np.float32) -> np.ndarray:
    """The codes that the kernels choose, computed in float32."""
    real = x.astype(np.float32) / np.float32(scale.scale) + np.float32(scale.zero_point)
    return np.asarray(np.clip(np.rint(real), qmin, qmax))


def _error_at(x: np.ndarray, codes: np.ndarray, scale: TensorScale) -> np.ndarray:
    decoded = (codes - np.float32(scale.zero_point)) * np.float32(scale.scale)
    return np.asarray(x - decoded.astype(np.float64))


def _values(bits: np.ndarray) -> np.ndarray:
    """float64: the bfloat16 numbers with these bits."""
    return np.asarray((bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64))


def _half_units(bits: np.ndarray) -> np.ndarray:
    """Half of float32's unit in the last place at these bfloat16 numbers, with their sign."""
    exponent = np.maximum((bits >> 7) & 0xFF, 1).astype(np.int32)
    return np.asarray(np.where(bits & 0x8000, -1.0, 1.0) * np.ldexp(1.0, exponent - 127 - 24))
