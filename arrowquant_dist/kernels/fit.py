"""Codes of least squared error for a group on a grid of whole numbers: starts, then alternating least squares.

For fixed codes q the best scale (and zero point) of y ≈ scale · (q - zero_point) is a linear regression of y on q; for
a fixed scale the best codes are the rounded ones. Each step lowers the squared error, so a start descends to a local
minimum. kernels/mse.py says why values are on a grid, and what was tried.
"""

from __future__ import annotations

import numpy as np

from arrowquant_dist.kernels.bits import larger, round_half_even, smaller, to_float32
from arrowquant_dist.kernels.compile import kernel, plus, plus_product


@kernel
def grid_size(qmin: np.float32) -> tuple[np.float32, int]:
    """(Y, chunk) such that |q| · Y · chunk < 2^24 for levels down to qmin, or up to -qmin; at most 255 of them."""
    if qmin >= np.float32(-15.0):
        return np.float32(8191.0), 128
    return np.float32(4095.0), 32 if qmin >= np.float32(-128.0) else 16


@kernel
def _to_grid(
    run: np.ndarray, centre: np.float32, factor: np.float32, y: np.ndarray
) -> tuple[np.float32, np.float32]:
    """y = round((x - centre) · factor). Returns float32 (Σy, Σ round(y/32)²) of up to 128 values, both exact."""
    total = np.float32(0.0)
    squares = np.float32(0.0)
    for j in range(run.size):
        value = round_half_even((to_float32(run[j]) - centre) * factor)
        y[j] = value
        coarse = round_half_even(value * np.float32(1 / 32))
        total = plus(total, value)
        squares = plus_product(squares, coarse, coarse)
    return total, squares


@kernel
def on_grid(run: np.ndarray, centre: np.float32, factor: np.float32, y: np.ndarray) -> tuple[float, float]:
    """_to_grid over a run of any length. Returns float64 (mean of y, root mean square of y about it)."""
    total = 0.0
    squares = 0.0
    for start in range(0, run.size, 128):
        a, b = _to_grid(run[start : start + 128], centre, factor, y[start : start + 128])
        total += np.float64(a)
        squares += np.float64(b)
    mean = total / run.size
    return mean, np.sqrt(max(1024.0 * squares / run.size - mean * mean, 1.0))


@kernel
def _code_sums(
    y: np.ndarray, inverse: np.float32, offset: np.float32, qmin: np.float32, qmax: np.float32
) -> tuple[np.float32, np.float32, np.float32]:
    """Float32 (Σq, Σq², Σq·y) for q = round(y · inverse + offset) clamped; exact for up to a chunk of values."""
    q_sum = np.float32(0.0)
    qq_sum = np.float32(0.0)
    qy_sum = np.float32(0.0)
    for j in range(y.size):
        q = round_half_even(smaller(larger(y[j] * inverse + offset, qmin), qmax))
        q_sum = plus(q_sum, q)
        qq_sum = plus_product(qq_sum, q, q)
        qy_sum = plus_product(qy_sum, q, y[j])
    return q_sum, qq_sum, qy_sum


@kernel
def level_sums(
    y: np.ndarray, chunk: int, inverse: float, zero_point: float, qmin: np.float32, qmax: np.float32
) -> tuple[float, float, float]:
    """_code_sums over any number of values, in float64, chunk by chunk in order."""
    factor = np.float32(inverse)
    offset = np.float32(zero_point)
    q_sum, qq_sum, qy_sum = _code_sums(y[:chunk], factor, offset, qmin, qmax)
    total = (np.float64(q_sum), np.float64(qq_sum), np.float64(qy_sum))
    for start in range(chunk, y.size, chunk):
        a, b, c = _code_sums(y[start : start + chunk], factor, offset, qmin, qmax)
        total = (total[0] + np.float64(a), total[1] + np.float64(b), total[2] + np.float64(c))
    return total


@kernel
def fit_symmetric(
    y: np.ndarray,
    chunk: int,
    rms: float,
    top: float,
    starts: np.ndarray,
    steps: int,
    qmin: np.float32,
    qmax: np.float32,
) -> tuple[float, float, float, float]:
    """Returns (Σq², Σqy) of the best codes found, then those of the last start's codes. Their quotient Σq² / Σqy is the
    inverse scale in units of y; Σqy is 0 if every start rounds all values to 0.

    With the least-squares scale Σqy / Σq² the squared error of codes q is Σy² - (Σqy)² / Σq²: of two sets of codes the
    one with the larger gain (Σqy)² / Σq² is better. Gains are compared without a division.
    """
    of_top = 1.0 / top
    of_rms = 1.0 / rms
    qq = 1.0
    qy = 0.0
    next_qq = 1.0
    next_qy = 0.0
    for k in range(starts.shape[0]):
        start = starts[k, 0] * of_top + starts[k, 1] * of_rms
        _, next_qq, next_qy = level_sums(y, chunk, start, 0.0, qmin, qmax)
        if next_qy * next_qy * qq > qy * qy * next_qq:
            qq = next_qq
            qy = next_qy
    last_qq = next_qq
    last_qy = next_qy
    qq, qy = descend_symmetric(y, chunk, qq, qy, steps, qmin, qmax)
    return qq, qy, last_qq, last_qy


@kernel
def descend_symmetric(
    y: np.ndarray, chunk: int, qq: float, qy: float, steps: int, qmin: np.float32, qmax: np.float32
) -> tuple[float, float]:
    """Least squares and rounding in turn, from the sums of some codes, as long as the gain grows. Returns the last
    (Σq², Σqy)."""
    for _ in range(steps):
        if qy == 0.0:
            break
        _, next_qq, next_qy = level_sums(y, chunk, qq / qy, 0.0, qmin, qmax)
        if next_qy * next_qy * qq <= qy * qy * next_qq:
            break
        qq = next_qq
        qy = next_qy
    return qq, qy


@kernel
def _moments(
    y: np.ndarray,
    mean: float,
    share: float,
    chunk: int,
    inverse: float,
    zero_point: float,
    qmin: np.float32,
    qmax: np.float32,
) -> tuple[float, float, float]:
    """(Σ(q - q̄)², Σ(q - q̄)(y - ȳ), q̄) of the codes q of y. mean: ȳ. share: 1 / n."""
    q, qq, qy = level_sums(y, chunk, inverse, zero_point, qmin, qmax)
    q_mean = q * share
    return qq - q * q_mean, qy - q * mean, q_mean


@kernel
def fit_asymmetric(
    y: np.ndarray,
    chunk: int,
    mean: float,
    rms: float,
    top: float,
    starts: np.ndarray,
    steps: int,
    qmin: np.float32,
    qmax: np.float32,
) -> tuple[float, float, float, float, float, float]:
    """Like fit_symmetric, with y regressed on q: the gain is covariance² / variance.

    Returns (variance, covariance, q̄) from _moments of the best codes found, then those of the last start's codes. The
    inverse scale in units of y is variance / covariance; the covariance is 0 if every start rounds all values to one
    code."""
    middle = 0.5 * (np.float64(qmin) + np.float64(qmax))
    share = 1.0 / np.float64(y.size)
    of_top = 1.0 / top
    of_rms = 1.0 / rms
    variance = 1.0
    covariance = 0.0
    q_mean = 0.0
    v = 1.0
    c = 0.0
    q = 0.0
    for k in range(starts.shape[0]):
        start = starts[k, 0] * of_top + starts[k, 1] * of_rms
        # a start made of the range is centred on the range, one made of the rms on the mean
        centre = mean if starts[k, 1] != 0.0 else 0.0
        offset = middle + starts[k, 2] - centre * start
        v, c, q = _moments(y, mean, share, chunk, start, offset, qmin, qmax)
        if c > 0.0 and v > 0.0 and c * c * variance > covariance * covariance * v:
            variance = v
            covariance = c
            q_mean = q
    last_v = v
    last_c = c
    last_q = q
    for _ in range(steps):
        if covariance == 0.0:
            break
        inverse = variance / covariance
        v, c, q = _moments(y, mean, share, chunk, inverse, q_mean - mean * inverse, qmin, qmax)
        if not (c > 0.0 and v > 0.0 and c * c * variance > covariance * covariance * v):
            break
        variance = v
        covariance = c
        q_mean = q
    return variance, covariance, q_mean, last_v, last_c, last_q
