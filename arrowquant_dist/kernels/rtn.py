"""Round-to-nearest scales: the formulas of the V2 format, a group at a time.

symmetric    scale = max|x| / qmax
asymmetric   scale = (max - min) / (qmax - qmin), zero_point = qmin - min / scale
"""

from __future__ import annotations

import numpy as np

from arrowquant_dist.kernels.compile import kernel

_SMALLEST = np.float32(1e-45)  # float32's smallest denormal


@kernel
def symmetric_scale(top: np.float32, qmax: np.float32) -> np.float32:
    """top: max|x|, finite. Returns the float32 scale; 1 where all values are 0.

    A scale that underflows becomes the smallest denormal; one whose largest decoded value, qmax · scale, would round to
    inf becomes the next smaller float32.
    """
    if top == np.float32(0.0):
        return np.float32(1.0)
    scale = np.float32(top / qmax)
    if scale == np.float32(0.0):
        return _SMALLEST
    if np.float32(scale * qmax) > np.float32(3.4028234663852886e38):
        scale = np.nextafter(scale, np.float32(0.0))
    return scale


@kernel
def asymmetric_scale(
    low: np.float32, high: np.float32, qmin: np.float32, qmax: np.float32
) -> tuple[np.float32, np.float32]:
    """low, high: min and max, finite. Returns float32 (scale, zero_point), computed in float64, rounded once.

    A constant group c decodes exactly: scale |c|, zero point 0, code ±1 (scale 1, code 0 for c = 0).
    """
    if low == high:
        return constant_scale(low), np.float32(0.0)
    scale = np.float32((np.float64(high) - np.float64(low)) / (np.float64(qmax) - np.float64(qmin)))
    if scale == np.float32(0.0):
        scale = _SMALLEST
    return scale, np.float32(np.float64(qmin) - np.float64(low) / np.float64(scale))


@kernel
def whole_asymmetric_scale(
    low: np.float32, high: np.float32, qmin: np.float32, qmax: np.float32
) -> tuple[np.float32, np.float32]:
    """As asymmetric_scale, with a whole zero point in [qmin, qmax]: the range is widened to hold 0."""
    low = min(low, np.float32(0.0))
    high = max(high, np.float32(0.0))
    if low == high:
        return np.float32(1.0), np.float32(0.0)
    scale = np.float32((np.float64(high) - np.float64(low)) / (np.float64(qmax) - np.float64(qmin)))
    if scale == np.float32(0.0):
        scale = _SMALLEST
    zero_point = np.rint(np.float64(qmin) - np.float64(low) / np.float64(scale))
    return scale, np.float32(min(max(zero_point, np.float64(qmin)), np.float64(qmax)))


@kernel
def constant_scale(value: np.float32) -> np.float32:
    """The scale with which code ±1 decodes to `value` exactly; 1 for 0."""
    return np.float32(1.0) if value == np.float32(0.0) else np.float32(abs(value))
