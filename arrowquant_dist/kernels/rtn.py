"""Round-to-nearest scales: the formulas of the V2 format, a group at a time.

symmetric    scale = max|x| / qmax
asymmetric   scale = (max - min) / (qmax - qmin), zero_point = qmin - min / scale
"""

from __future__ import annotations

import numpy as np

from arrowquant_dist.kernels.compile import kernel

_NORMAL = np.float32(1.1754943508222875e-38)  # float32's smallest normal number
_MAX = np.float32(3.4028234663852886e38)


@kernel
def _decodable(scale: np.float32, reach: np.float32) -> np.float32:
    """The largest scale, up to `scale`, with which codes up to `reach` steps from zero decode to finite values."""
    if scale * reach <= _MAX:
        return scale
    scale = min(scale, np.float32(_MAX / reach))
    return scale if scale * reach <= _MAX else np.nextafter(scale, np.float32(0.0))


@kernel
def _covering(width: np.float64, steps: np.float64) -> np.float32:
    """width / steps in float32; denormals are rounded up if rounding down would clip the largest values."""
    scale = np.float32(width / steps)
    if scale < _NORMAL and np.float64(scale) * steps < width:
        return np.nextafter(scale, _NORMAL)
    return scale


@kernel
def symmetric_scale(top: np.float32, qmax: np.float32) -> np.float32:
    """top: max|x|, finite. Returns the float32 scale; 1 if all values are 0.

    It is at most 1 ulp from the formula: denormal scales are rounded up, and a scale whose largest decoded value,
    qmax · scale, would round to inf becomes the next smaller float32.
    """
    if top == np.float32(0.0):
        return np.float32(1.0)
    return _decodable(_covering(np.float64(top), np.float64(qmax)), qmax)


@kernel
def asymmetric_scale(
    low: np.float32, high: np.float32, qmin: np.float32, qmax: np.float32
) -> tuple[np.float32, np.float32]:
    """low, high: min and max, finite. Returns float32 (scale, zero_point), computed in float64 and rounded once.

    A constant group decodes exactly: for values c the scale is |c|, the zero point 0 and the code ±1 (for c = 0 scale 1
    and code 0).
    """
    if low == high:
        return constant_scale(low), np.float32(0.0)
    scale = _covering(np.float64(high) - np.float64(low), np.float64(qmax) - np.float64(qmin))
    zero_point = np.float32(np.float64(qmin) - np.float64(low) / np.float64(scale))
    return _decodable(scale, max(abs(qmin - zero_point), abs(qmax - zero_point))), zero_point


@kernel
def whole_asymmetric_scale(
    low: np.float32, high: np.float32, qmin: np.float32, qmax: np.float32
) -> tuple[np.float32, np.float32]:
    """Like asymmetric_scale, with a whole zero point in [qmin, qmax]: the range is widened to include 0."""
    low = min(low, np.float32(0.0))
    high = max(high, np.float32(0.0))
    if low == high:
        return np.float32(1.0), np.float32(0.0)
    scale = _covering(np.float64(high) - np.float64(low), np.float64(qmax) - np.float64(qmin))
    real = np.rint(np.float64(qmin) - np.float64(low) / np.float64(scale))
    zero_point = np.float32(min(max(real, np.float64(qmin)), np.float64(qmax)))
    return _decodable(scale, max(abs(qmin - zero_point), abs(qmax - zero_point))), zero_point


@kernel
def constant_scale(value: np.float32) -> np.float32:
    """The scale with which code 1 or -1 decodes to `value` exactly; 1 for 0."""
    return np.float32(1.0) if value == np.float32(0.0) else np.float32(abs(value))
