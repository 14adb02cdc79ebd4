"""Rows of weights → codes, scales, zero points and error sums. One function per method, one pass over each row.

Common arguments: bits: source bits [rows, columns] (float32 as int32, bfloat16 as uint16, float16 as int16), C order.
group: values per group (columns for one scale per row). qmin, qmax: float32. width: bits per code. codes: uint8
[rows, row bytes]. scales, zero_points: float32 [rows, groups]; zero_points are [rows, 0] if symmetric. scratch: uint8
[columns]. sums: float64 [4], as in encode_run. Functions that choose scales return the first row that holds NaN or inf,
after which all that was written is meaningless, or -1.
"""

from __future__ import annotations

import numpy as np

from arrowquant_dist.kernels.compile import kernel
from arrowquant_dist.kernels.encode import encode_run
from arrowquant_dist.kernels.mse import (
    asymmetric_mse_scale,
    symmetric_mse_scale,
    whole_asymmetric_mse_scale,
)
from arrowquant_dist.kernels.pack import pack_row
from arrowquant_dist.kernels.rtn import asymmetric_scale, symmetric_scale, whole_asymmetric_scale
from arrowquant_dist.kernels.spans import largest_magnitude, span

_INF = np.float32(np.inf)


@kernel
def _encode_row(
    row: np.ndarray,
    group: int,
    scales: np.ndarray,
    zero_points: np.ndarray,
    qmin: np.float32,
    qmax: np.float32,
    width: int,
    codes: np.ndarray,
    scratch: np.ndarray,
    sums: np.ndarray,
) -> None:
    """zero_points: float32 [groups], or [0] for none."""
    plain = codes if width == 8 else scratch
    for k in range(scales.size):
        stop = min((k + 1) * group, row.size)
        zero_point = zero_points[k] if zero_points.size > 0 else np.float32(0.0)
        encode_run(row[k * group : stop], scales[k], zero_point, qmin, qmax, plain[k * group : stop], sums)
    if width != 8:
        pack_row(plain, width, codes)


@kernel
def quantize_rtn_symmetric(
    bits: np.ndarray,
    group: int,
    qmin: np.float32,
    qmax: np.float32,
    width: int,
    codes: np.ndarray,
    scales: np.ndarray,
    zero_points: np.ndarray,
    scratch: np.ndarray,
    sums: np.ndarray,
) -> int:
    for i in range(bits.shape[0]):
        row = bits[i]
        for k in range(scales.shape[1]):
            top = largest_magnitude(row[k * group : min((k + 1) * group, row.size)])
            if not (top < _INF):
                return i
            scales[i, k] = symmetric_scale(top, qmax)
        _encode_row(row, group, scales[i], zero_points[i], qmin, qmax, width, codes[i], scratch, sums)
    return -1


@kernel
def quantize_rtn_asymmetric(
    bits: np.ndarray,
    group: int,
    qmin: np.float32,
    qmax: np.float32,
    width: int,
    whole: np.bool_,
    codes: np.ndarray,
    scales: np.ndarray,
    zero_points: np.ndarray,
    scratch: np.ndarray,
    sums: np.ndarray,
) -> int:
    """whole: zero points are whole numbers in [qmin, qmax]."""
    for i in range(bits.shape[0]):
        row = bits[i]
        for k in range(scales.shape[1]):
            low, high = span(row[k * group : min((k + 1) * group, row.size)])
            if not (low > -_INF and high < _INF):
                return i
            if whole:
                scales[i, k], zero_points[i, k] = whole_asymmetric_scale(low, high, qmin, qmax)
            else:
                scales[i, k], zero_points[i, k] = asymmetric_scale(low, high, qmin, qmax)
        _encode_row(row, group, scales[i], zero_points[i], qmin, qmax, width, codes[i], scratch, sums)
    return -1


@kernel
def quantize_mse_symmetric(
    bits: np.ndarray,
    group: int,
    qmin: np.float32,
    qmax: np.float32,
    width: int,
    starts: np.ndarray,
    steps: int,
    codes: np.ndarray,
    scales: np.ndarray,
    zero_points: np.ndarray,
    scratch: np.ndarray,
    sums: np.ndarray,
    y: np.ndarray,
) -> int:
    """starts, steps, y: see symmetric_mse_scale."""
    for i in range(bits.shape[0]):
        row = bits[i]
        for k in range(scales.shape[1]):
            run = row[k * group : min((k + 1) * group, row.size)]
            low, high = span(run)
            if not (low > -_INF and high < _INF):
                return i
            scales[i, k] = symmetric_mse_scale(run, low, high, starts, steps, qmin, qmax, y)
        _encode_row(row, group, scales[i], zero_points[i], qmin, qmax, width, codes[i], scratch, sums)
    return -1


@kernel
def quantize_mse_asymmetric(
    bits: np.ndarray,
    group: int,
    qmin: np.float32,
    qmax: np.float32,
    width: int,
    whole: np.bool_,
    starts: np.ndarray,
    steps: int,
    codes: np.ndarray,
    scales: np.ndarray,
    zero_points: np.ndarray,
    scratch: np.ndarray,
    sums: np.ndarray,
    y: np.ndarray,
) -> int:
    """whole: zero points are whole numbers. starts, steps, y: see asymmetric_mse_scale."""
    for i in range(bits.shape[0]):
        row = bits[i]
        for k in range(scales.shape[1]):
            run = row[k * group : min((k + 1) * group, row.size)]
            low, high = span(run)
            if not (low > -_INF and high < _INF):
                return i
            if whole:
                scales[i, k], zero_points[i, k] = whole_asymmetric_mse_scale(
                    run, low, high, starts, steps, qmin, qmax, y
                )
            else:
                scales[i, k], zero_points[i, k] = asymmetric_mse_scale(
                    run, low, high, starts, steps, qmin, qmax, y
                )
        _encode_row(row, group, scales[i], zero_points[i], qmin, qmax, width, codes[i], scratch, sums)
    return -1


@kernel
def quantize_with_scales(
    bits: np.ndarray,
    group: int,
    scales: np.ndarray,
    zero_points: np.ndarray,
    qmin: np.float32,
    qmax: np.float32,
    width: int,
    codes: np.ndarray,
    scratch: np.ndarray,
    sums: np.ndarray,
) -> None:
    """Codes for given scales and zero points of each row or group. The values are known to be finite."""
    for i in range(bits.shape[0]):
        _encode_row(bits[i], group, scales[i], zero_points[i], qmin, qmax, width, codes[i], scratch, sums)


@kernel
def quantize_with_scale(
    bits: np.ndarray,
    scales: np.ndarray,
    zero_points: np.ndarray,
    qmin: np.float32,
    qmax: np.float32,
    width: int,
    codes: np.ndarray,
    scratch: np.ndarray,
    sums: np.ndarray,
) -> None:
    """Codes for one given scale for all rows (per tensor). scales: float32 [1]; zero_points: [1], or [0] if symmetric.
    The values are known to be finite."""
    for i in range(bits.shape[0]):
        _encode_row(bits[i], bits.shape[1], scales, zero_points, qmin, qmax, width, codes[i], scratch, sums)
