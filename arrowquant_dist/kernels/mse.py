"""Scales and zero points that minimise a group's squared error: a grid of starts, then alternating least squares.

For fixed codes q the best scale (and zero point) of x ≈ scale · (q - zero_point) is a linear regression of x on q; for
a fixed scale the best codes are the rounded ones. Each step lowers Σ(x - x̂)², so a start descends to a local minimum;
the starts are spread over clipping ratios and offsets, each is rounded once, and the best ones descend.

Every choice is made with x centred and scaled to small integers y, |y| ≤ Y: sums of q, q² and q·y over a chunk stay
below 2^24 and are exact in float32, so their order, and with it the CPU's vector width, changes nothing. With Y = 8191
the grid is 1/1000 of a step of 4 bits; the codes themselves are made from x, not from y.

Below 8 bits scales are rounded to bfloat16's 8 significant bits, and real zero points to 1/64. This adds less than
0.1 % to the error of rounding the weights, halves their bytes when compressed, and exporters whose scales are bfloat16
lose nothing.

A scale that is rounded like that, or found on y instead of x, may be worse than rtn's, for example for a group of -c, 0
and c, which rtn represents exactly. So rtn's scale is one of the starts and its sums are kept. If the sums show beyond
doubt that the chosen scale has less error, which costs nothing, it is taken; otherwise the errors of the codes
themselves are compared, and rtn's scale is taken if it wins.

What did not work: starting from the full range only (int2 asymmetric: mean cosine on MiniLM 0.9336, with five offsets
0.9375); more than four steps of descent; descending from more than two starts (gains under 0.0001).
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
from arrowquant_dist.kernels.compile import kernel
from arrowquant_dist.kernels.fit import (
    descend_symmetric,
    fit_asymmetric,
    fit_symmetric,
    grid_size,
    level_sums,
    on_grid,
)
from arrowquant_dist.kernels.rtn import (
    asymmetric_scale,
    constant_scale,
    symmetric_scale,
    whole_asymmetric_scale,
)

# Outside these magnitudes 1/span or scale · code could leave float32: such groups take the rtn scale.
_LARGEST = np.float32(1e37)
_SMALLEST = np.float32(1e-30)


@kernel
def short_float(value: float) -> np.float32:
    """float64 → the nearest float32 with 8 significant bits (a bfloat16)."""
    return to_float32(to_bits(np.float32(value), np.uint16(0)))


@kernel
def _stored_scale(value: float, qmin: np.float32) -> np.float32:
    """float64 → the float32 that is stored, which is short below 8 bits. At 8 bits, half a unit in the last place of a
    short scale moves the outermost levels by a quarter of a step, which clips the largest values."""
    return short_float(value) if qmin >= np.float32(-8.0) else np.float32(value)


@kernel
def _excesses(
    run: np.ndarray,
    scale: np.float32,
    zero_point: np.float32,
    other_scale: np.float32,
    other_zero_point: np.float32,
    qmin: np.float32,
    qmax: np.float32,
    out: np.ndarray,
) -> None:
    """out: float32 [n], for each value its squared error less the squared error with the other scale and zero point, in
    squares of the other scale, which keeps them within float32."""
    inverse = np.float32(1.0) / other_scale
    for j in range(run.size):
        value = to_float32(run[j])
        q = round_half_even(smaller(larger(value / scale + zero_point, qmin), qmax))
        error = (value - (q - zero_point) * scale) * inverse
        q = round_half_even(smaller(larger(value / other_scale + other_zero_point, qmin), qmax))
        other = (value - (q - other_zero_point) * other_scale) * inverse
        out[j] = (error - other) * (error + other)


@kernel
def _is_worse(
    run: np.ndarray,
    scale: np.float32,
    zero_point: np.float32,
    other_scale: np.float32,
    other_zero_point: np.float32,
    qmin: np.float32,
    qmax: np.float32,
    scratch: np.ndarray,
) -> bool:
    """Whether Σ(x - x̂)² is larger than with the other scale and zero point. Summed in float64, in a fixed order, as
    four sums, because each addition waits for the one before it. scratch: float32 [≥ n]."""
    excess = scratch[: run.size]
    _excesses(run, scale, zero_point, other_scale, other_zero_point, qmin, qmax, excess)
    a = 0.0
    b = 0.0
    c = 0.0
    d = 0.0
    whole = run.size & ~3
    for j in range(0, whole, 4):
        a += np.float64(excess[j])
        b += np.float64(excess[j + 1])
        c += np.float64(excess[j + 2])
        d += np.float64(excess[j + 3])
    for j in range(whole, run.size):
        a += np.float64(excess[j])
    return (a + b) + (c + d) > 0.0


@kernel
def _doubt(count: int, errors: float, reach: float) -> float:
    """By how much the Σ(y - ŷ)² of two sets of codes may differ although their errors on x compare the other way round.

    Each value is at most δ from its y (half a unit of the grid, and float32's rounding), so the root of each sum is
    within δ√n of that on x, and the difference is at most 2δ√n · (√E + √E′). errors: upper bound of (√E + √E′) / √n, in
    units of y: rtn's step, because its errors are at most half a step, or twice that if its zero point is rounded.
    reach: max|x|, in units of y.
    """
    return 2.0 * np.float64(count) * errors * (0.51 + reach * 2.0**-21)


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
    """Returns the float32 scale of a group, negative if the levels -2^(b-1) … 2^(b-1)-1 fit it better when negated.

    run: source bits [n] with minimum `low` and maximum `high`. starts: float64 [starts, ≥ 2], each an inverse scale as
    a multiple of 1 / max|x| plus a multiple of 1 / rms; the last is rtn's. y: float32 [≥ n], scratch."""
    if low == high:
        return constant_scale(low) if low >= np.float32(0.0) else -constant_scale(low)
    top = max(abs(low), abs(high))
    if not (top > _SMALLEST and top < _LARGEST):
        return symmetric_scale(top, qmax)
    limit, chunk = grid_size(qmin)
    factor = np.float32(limit / top)
    mean, rms = on_grid(run, np.float32(0.0), factor, y)
    rms = np.sqrt(rms * rms + mean * mean)
    qq, qy, rtn_qq, rtn_qy = fit_symmetric(
        y[: run.size], chunk, rms, np.float64(limit), starts, steps, qmin, qmax
    )
    if qy == 0.0:
        return symmetric_scale(top, qmax)
    scale = _stored_scale(1.0 / (qq / qy * np.float64(factor)), qmin)
    unit = np.float64(scale) * np.float64(factor)
    rtn_unit = np.float64(limit) / np.float64(qmax)
    gain = rtn_unit * (rtn_unit * rtn_qq - 2.0 * rtn_qy) - unit * (unit * qq - 2.0 * qy)
    if gain > _doubt(run.size, rtn_unit, np.float64(limit)):
        return scale
    zero = np.float32(0.0)
    rtn = symmetric_scale(top, qmax)
    return rtn if _is_worse(run, scale, zero, rtn, zero, qmin, qmax, y) else scale


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
    """Like symmetric_mse_scale, but returns float32 (scale, zero_point). starts: float64 [starts, 3]: multiples of the
    inverse of half the range and of the inverse rms about the mean, and an offset of the zero point in codes."""
    if low == high:
        return constant_scale(low), np.float32(0.0)
    centre = low * np.float32(0.5) + high * np.float32(0.5)
    half = high * np.float32(0.5) - low * np.float32(0.5)
    if not (half > _SMALLEST and max(abs(low), abs(high)) < _LARGEST):
        return asymmetric_scale(low, high, qmin, qmax)
    scale, zero_point, gain = _search_asymmetric(run, centre, half, starts, steps, qmin, qmax, y)
    if gain > 0.0:
        return scale, zero_point
    rtn_scale, rtn_zero_point = asymmetric_scale(low, high, qmin, qmax)
    if scale == np.float32(0.0) or _is_worse(
        run, scale, zero_point, rtn_scale, rtn_zero_point, qmin, qmax, y
    ):
        return rtn_scale, rtn_zero_point
    return scale, zero_point


@kernel
def _search_asymmetric(
    run: np.ndarray,
    centre: np.float32,
    half: np.float32,
    starts: np.ndarray,
    steps: int,
    qmin: np.float32,
    qmax: np.float32,
    y: np.ndarray,
) -> tuple[np.float32, np.float32, float]:
    """The best (scale, zero_point) found, with scale 0 if none was, and how much they gain over rtn's beyond doubt."""
    limit, chunk = grid_size(qmin)
    factor = np.float32(limit / half)
    mean, rms = on_grid(run, centre, factor, y)
    variance, covariance, q_mean, rtn_v, rtn_c, rtn_q = fit_asymmetric(
        y[: run.size], chunk, mean, rms, np.float64(limit), starts, steps, qmin, qmax
    )
    if covariance == 0.0:
        return np.float32(0.0), np.float32(0.0), 0.0
    inverse = variance / covariance
    scale = _stored_scale(1.0 / (inverse * np.float64(factor)), qmin)
    unit = np.float64(scale) * np.float64(factor)
    real = q_mean - mean * inverse + (mean * inverse - mean / unit) - np.float64(centre) / np.float64(scale)
    zero_point = np.float32(np.rint(real * 64.0) / 64.0)
    level = q_mean - np.float64(zero_point) - np.float64(centre) / np.float64(scale)
    # rtn's range is that of y, so its zero point is the middle of the codes
    rtn_unit = 2.0 * np.float64(limit) / (np.float64(qmax) - np.float64(qmin))
    rtn_level = rtn_q - 0.5 * (np.float64(qmin) + np.float64(qmax))
    error = _error(variance, covariance, level, mean, run.size, unit)
    gain = _error(rtn_v, rtn_c, rtn_level, mean, run.size, rtn_unit) - error
    reach = (abs(np.float64(centre)) + np.float64(half)) * np.float64(factor)
    return scale, zero_point, gain - _doubt(run.size, rtn_unit, reach)


@kernel
def _error(variance: float, covariance: float, level: float, mean: float, count: int, unit: float) -> float:
    """Σ(y - ŷ)² - Σy² of codes whose levels, q - zero point, have the mean `level`. mean: ȳ."""
    n = np.float64(count)
    squares = variance + n * level * level
    products = covariance + n * level * mean
    return unit * (unit * squares - 2.0 * products)


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
    """Like asymmetric_mse_scale, with a whole zero point in [qmin, qmax]: tries the real one's neighbours and rtn's.

    For a given zero point, the scale is a regression through zero on the levels q - zero_point.
    """
    rtn_scale, rtn_zero_point = whole_asymmetric_scale(low, high, qmin, qmax)
    top = max(abs(low), abs(high))
    if not (top < _LARGEST and high * np.float32(0.5) - low * np.float32(0.5) > _SMALLEST):
        return rtn_scale, rtn_zero_point
    centre = low * np.float32(0.5) + high * np.float32(0.5)
    half = high * np.float32(0.5) - low * np.float32(0.5)
    real_scale, real, _ = _search_asymmetric(run, centre, half, starts, steps, qmin, qmax, y)
    if real_scale == np.float32(0.0):
        real_scale, real = asymmetric_scale(low, high, qmin, qmax)
    limit, chunk = grid_size(qmin - qmax)
    factor = np.float32(limit / top)
    on_grid(run, np.float32(0.0), factor, y)
    rtn_unit = np.float64(rtn_scale) * np.float64(factor)
    rtn_error = 0.0
    qq = 1.0
    qy = 0.0
    zero_point = rtn_zero_point
    for trial in (np.floor(real), np.ceil(real), rtn_zero_point):
        held = min(max(trial, qmin), qmax)
        for scale in (real_scale, rtn_scale):
            start = 1.0 / (np.float64(scale) * np.float64(factor))
            _, next_qq, next_qy = level_sums(y[: run.size], chunk, start, 0.0, qmin - held, qmax - held)
            rtn_error = rtn_unit * (rtn_unit * next_qq - 2.0 * next_qy)  # the last pass is rtn's
            next_qq, next_qy = descend_symmetric(
                y[: run.size], chunk, next_qq, next_qy, steps, qmin - held, qmax - held
            )
            if next_qy * next_qy * qq > qy * qy * next_qq:
                qq = next_qq
                qy = next_qy
                zero_point = held
    if qy <= 0.0:
        return rtn_scale, rtn_zero_point
    best = _stored_scale(qy / qq / np.float64(factor), qmin)
    unit = np.float64(best) * np.float64(factor)
    gain = rtn_error - unit * (unit * qq - 2.0 * qy)
    if gain > _doubt(run.size, 2.0 * rtn_unit, np.float64(limit)):
        return best, zero_point
    if _is_worse(run, best, zero_point, rtn_scale, rtn_zero_point, qmin, qmax, y):
        return rtn_scale, rtn_zero_point
    return best, zero_point
