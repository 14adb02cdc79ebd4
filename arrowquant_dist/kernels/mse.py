"""Scales and zero points that minimise a group's squared error: a grid of starts, then alternating least squares.

For fixed codes q the best scale (and zero point) of x ≈ scale · (q - zero_point) is a linear regression of x on q; for
a fixed scale the best codes are the rounded ones. Each step lowers Σ(x - x̂)², so a start descends to a local minimum;
the starts are spread over clipping ratios and offsets, each is rounded once, and the best ones descend.

Everything that chooses runs on x centred and scaled to small integers y, |y| ≤ Y: sums of q, q² and q·y over a chunk
stay below 2^24 and are exact in float32, so their order, and with it the CPU's vector width, changes nothing. Y = 8191
is 1/1000 of a step of 4 bits; the codes themselves are made from x, not from y.

Below 8 bits scales are rounded to bfloat16's 8 significant bits, and real zero points to 1/64: less than 0.1 % of the
error that rounding the weights makes, half the bytes once compressed, and exporters whose scales are bfloat16 lose
nothing.

What did not work: starting from the full range alone (int2 asymmetric 0.9336 mean cosine on MiniLM where five offsets
give 0.9375); more than four steps of descent; descending from more than two starts (under 0.0001).
"""

from __future__ import annotations

import numpy as np

from arrowquant_dist.kernels.bits import (
    larger,
    round_half_even,
    smaller,
    to_bits,
    to_float32,
)
from arrowquant_dist.kernels.compile import kernel, plus, plus_product
from arrowquant_dist.kernels.rtn import (
    asymmetric_scale,
    constant_scale,
    symmetric_scale,
    whole_asymmetric_scale,
)

# Outside, 1/span or scale · code could leave float32: such groups take the rtn scale.
_LARGEST = np.float32(1e37)
_SMALLEST = np.float32(1e-30)


@kernel
def _grid_size(qmin: np.float32) -> tuple[np.float32, int]:
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
def _grid(run: np.ndarray, centre: np.float32, factor: np.float32, y: np.ndarray) -> tuple[float, float]:
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
def _sums(
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
def _fit_symmetric(
    y: np.ndarray,
    chunk: int,
    rms: float,
    top: float,
    starts: np.ndarray,
    steps: int,
    qmin: np.float32,
    qmax: np.float32,
) -> float:
    """Returns the inverse of the best scale found, in units of y; 0 where every start rounds all to 0.

    With the least-squares scale Σqy / Σq² the squared error of codes q is Σy² - (Σqy)² / Σq²: of two sets of codes the
    one with the larger gain (Σqy)² / Σq² is better, which is compared without a division.
    """
    of_top = 1.0 / top
    of_rms = 1.0 / rms
    qq = 1.0
    qy = 0.0
    for k in range(starts.shape[0]):
        start = starts[k, 0] * of_top + starts[k, 1] * of_rms
        _, next_qq, next_qy = _sums(y, chunk, start, 0.0, qmin, qmax)
        if next_qy * next_qy * qq > qy * qy * next_qq:
            qq = next_qq
            qy = next_qy
    qq, qy = _descend_symmetric(y, chunk, qq, qy, steps, qmin, qmax)
    return qq / qy if qy != 0.0 else 0.0


@kernel
def _descend_symmetric(
    y: np.ndarray, chunk: int, qq: float, qy: float, steps: int, qmin: np.float32, qmax: np.float32
) -> tuple[float, float]:
    """Least squares and rounding in turn, from the sums of some codes, as long as the gain grows. Returns the last
    (Σq², Σqy)."""
    for _ in range(steps):
        if qy == 0.0:
            break
        _, next_qq, next_qy = _sums(y, chunk, qq / qy, 0.0, qmin, qmax)
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
    """Of the codes q of y: (Σ(q - q̄)², Σ(q - q̄)(y - ȳ), q̄). mean: ȳ. share: 1 / n."""
    q, qq, qy = _sums(y, chunk, inverse, zero_point, qmin, qmax)
    q_mean = q * share
    return qq - q * q_mean, qy - q * mean, q_mean


@kernel
def _fit_asymmetric(
    y: np.ndarray,
    chunk: int,
    mean: float,
    rms: float,
    top: float,
    starts: np.ndarray,
    steps: int,
    qmin: np.float32,
    qmax: np.float32,
) -> tuple[float, float]:
    """Returns the best (inverse scale, zero_point) found, in units of y; inverse 0 where every start rounds all to one
    code. As _fit_symmetric, with y regressed on q: the gain is covariance² / variance."""
    middle = 0.5 * (np.float64(qmin) + np.float64(qmax))
    share = 1.0 / np.float64(y.size)
    of_top = 1.0 / top
    of_rms = 1.0 / rms
    variance = 1.0
    covariance = 0.0
    q_mean = 0.0
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
    if covariance == 0.0:
        return 0.0, 0.0
    for _ in range(steps):
        inverse = variance / covariance
        v, c, q = _moments(y, mean, share, chunk, inverse, q_mean - mean * inverse, qmin, qmax)
        if not (c > 0.0 and v > 0.0 and c * c * variance > covariance * covariance * v):
            break
        variance = v
        covariance = c
        q_mean = q
    inverse = variance / covariance
    return inverse, q_mean - mean * inverse


@kernel
def short_float(value: float) -> np.float32:
    """float64 → the nearest float32 with 8 significant bits (a bfloat16)."""
    return to_float32(to_bits(np.float32(value), np.uint16(0)))


@kernel
def _stored_scale(value: float, qmin: np.float32) -> np.float32:
    """float64 → the float32 that is stored: short below 8 bits. At 8, half a unit of a short scale's last digit moves
    the outermost levels by a quarter of a step, which clips the largest values."""
    return short_float(value) if qmin >= np.float32(-8.0) else np.float32(value)


@kernel
def symmetric_mse_scale(
    run: np.ndarray,
    low: np.float32,
    high: np.float32,
    starts: np.ndarray,
    steps: int,
    qmin: np.float32,
    qmax: np.float32,
    y: np.ndarray,
) -> np.float32:
    """run: source bits [n] with minimum `low` and maximum `high`. Returns the float32 scale, negative where the levels
    -2^(b-1) … 2^(b-1)-1 serve the group better turned round. y: float32 [≥ n], scratch.
    starts: float64 [starts, ≥ 2], each an inverse scale as a multiple of 1 / max|x| plus one of 1 / rms."""
    if low == high:
        return constant_scale(low) if low >= np.float32(0.0) else -constant_scale(low)
    top = max(abs(low), abs(high))
    if not (top > _SMALLEST and top < _LARGEST):
        return symmetric_scale(top, qmax)
    limit, chunk = _grid_size(qmin)
    factor = np.float32(limit / top)
    mean, rms = _grid(run, np.float32(0.0), factor, y)
    rms = np.sqrt(rms * rms + mean * mean)
    inverse = _fit_symmetric(y[: run.size], chunk, rms, np.float64(limit), starts, steps, qmin, qmax)
    if inverse == 0.0:
        return symmetric_scale(top, qmax)
    return _stored_scale(1.0 / (inverse * np.float64(factor)), qmin)


@kernel
def asymmetric_mse_scale(
    run: np.ndarray,
    low: np.float32,
    high: np.float32,
    starts: np.ndarray,
    steps: int,
    qmin: np.float32,
    qmax: np.float32,
    y: np.ndarray,
) -> tuple[np.float32, np.float32]:
    """As symmetric_mse_scale; returns float32 (scale, zero_point). starts: [starts, 3], the third an offset of the
    zero point in codes; multiples of the inverses of half the range and of the rms about the mean."""
    if low == high:
        return constant_scale(low), np.float32(0.0)
    centre = low * np.float32(0.5) + high * np.float32(0.5)
    half = high * np.float32(0.5) - low * np.float32(0.5)
    if not (half > _SMALLEST and max(abs(low), abs(high)) < _LARGEST):
        return asymmetric_scale(low, high, qmin, qmax)
    limit, chunk = _grid_size(qmin)
    factor = np.float32(limit / half)
    mean, rms = _grid(run, centre, factor, y)
    inverse, zero_point = _fit_asymmetric(
        y[: run.size], chunk, mean, rms, np.float64(limit), starts, steps, qmin, qmax
    )
    if inverse == 0.0:
        return asymmetric_scale(low, high, qmin, qmax)
    rounded = _stored_scale(1.0 / (inverse * np.float64(factor)), qmin)
    unit = np.float64(rounded) * np.float64(factor)
    zero_point += mean * inverse - mean / unit
    zero_point -= np.float64(centre) / np.float64(rounded)
    return rounded, np.float32(np.rint(zero_point * 64.0) / 64.0)


@kernel
def whole_asymmetric_mse_scale(
    run: np.ndarray,
    low: np.float32,
    high: np.float32,
    starts: np.ndarray,
    steps: int,
    qmin: np.float32,
    qmax: np.float32,
    y: np.ndarray,
) -> tuple[np.float32, np.float32]:
    """As asymmetric_mse_scale, with a whole zero point in [qmin, qmax]: the real one's neighbours and rtn's are tried.

    With a zero point given, the scale is a regression through zero on the levels q - zero_point.
    """
    rtn_scale, rtn_zero_point = whole_asymmetric_scale(low, high, qmin, qmax)
    top = max(abs(low), abs(high))
    if not (top < _LARGEST and high * np.float32(0.5) - low * np.float32(0.5) > _SMALLEST):
        return rtn_scale, rtn_zero_point
    real_scale, real = asymmetric_mse_scale(run, low, high, starts, steps, qmin, qmax, y)
    limit, chunk = _grid_size(qmin - qmax)
    factor = np.float32(limit / top)
    _grid(run, np.float32(0.0), factor, y)
    qq = 1.0
    qy = 0.0
    zero_point = rtn_zero_point
    for trial in (np.floor(real), np.ceil(real), rtn_zero_point):
        held = min(max(trial, qmin), qmax)
        for scale in (real_scale, rtn_scale):
            start = 1.0 / (np.float64(scale) * np.float64(factor))
            _, next_qq, next_qy = _sums(y[: run.size], chunk, start, 0.0, qmin - held, qmax - held)
            next_qq, next_qy = _descend_symmetric(
                y[: run.size], chunk, next_qq, next_qy, steps, qmin - held, qmax - held
            )
            if next_qy * next_qy * qq > qy * qy * next_qq:
                qq = next_qq
                qy = next_qy
                zero_point = held
    if qy <= 0.0:
        return rtn_scale, rtn_zero_point
    return _stored_scale(qy / qq / np.float64(factor), qmin), zero_point
