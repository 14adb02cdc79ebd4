"""Rows of weights → codes with a step in proportion to each row's root mean square, rounded to what takes few bits.

The codes are meant to be entropy coded, so their type only has to be wide enough for nearly all of them. If a bit costs
as much as `rate` squared steps, the code nearer to zero is the better one even for some values beyond the midpoint: if
code lengths grow by 2.04 · c bits from one code to the next (for a Laplace distribution, with a step of c times its
standard deviation), each boundary moves outwards by 1.02 · c · rate steps. These lengths depend on c alone and not on
the actual codes, so a row has the same codes whatever it is quantized with.

Codes nearer to zero make the weights smaller, so the stored scale is not the step, but the scale of least squared error
for the codes.
"""

from __future__ import annotations

import numpy as np

from arrowquant_dist.kernels.bits import (
    float32_bits,
    larger,
    round_half_even,
    smaller,
    to_code,
    to_float32,
)
from arrowquant_dist.kernels.compile import kernel, plus_product
from arrowquant_dist.kernels.encode import encode_run
from arrowquant_dist.kernels.mse import short_float
from arrowquant_dist.kernels.pack import pack_row
from arrowquant_dist.kernels.rtn import constant_scale, symmetric_scale
from arrowquant_dist.kernels.spans import span

_INF = np.float32(np.inf)
# Outside these magnitudes a step's inverse or a decoded value could leave float32: such rows take rtn's scale.
_SMALLEST, _LARGEST = np.float32(1e-30), np.float32(1e37)
_MEASURED = 4096  # values whose errors are summed in float32 before they are added in float64


@kernel
def root_mean_square(row: np.ndarray) -> float:
    """row: source bits [n], finite. Summed in float64, in a fixed order, as four sums, because each addition waits for
    the one before it."""
    a = 0.0
    b = 0.0
    c = 0.0
    d = 0.0
    whole = row.size & ~3
    for j in range(0, whole, 4):
        w, x = np.float64(to_float32(row[j])), np.float64(to_float32(row[j + 1]))
        y, z = np.float64(to_float32(row[j + 2])), np.float64(to_float32(row[j + 3]))
        a += w * w
        b += x * x
        c += y * y
        d += z * z
    for j in range(whole, row.size):
        w = np.float64(to_float32(row[j]))
        a += w * w
    return np.sqrt(((a + b) + (c + d)) / row.size)


@kernel
def row_step(rms: float, relative: float, top: float, count: int, qmax: float) -> np.float32:
    """The step of a row of `count` values: relative · rms, or the step with which the largest magnitude `top` has code
    qmax, if steps as wide as that add less to the squared error than clipping this one value."""
    step = relative * rms
    covering = top / qmax
    if covering > step:
        cut = top - qmax * step
        if np.float64(count) * (covering * covering - step * step) < 12.0 * cut * cut:
            return np.float32(covering)
    return np.float32(step)


@kernel
def shifted_code(value: np.float32, shift: np.float32, qmin: np.float32, qmax: np.float32) -> np.float32:
    """The code of a value that is given in steps, with boundaries between codes `shift` steps further from zero than
    midway."""
    zero = np.float32(0.0)
    size = round_half_even(larger(abs(value) - shift, zero))
    return smaller(larger(size if value >= zero else -size, qmin), qmax)


@kernel
def _round_row(
    row: np.ndarray, step: np.float32, shift: np.float32, qmin: np.float32, qmax: np.float32, q: np.ndarray
) -> None:
    """q: float32 [n], receives the code of each value."""
    inverse = np.float32(1.0) / step
    for j in range(row.size):
        q[j] = shifted_code(to_float32(row[j]) * inverse, shift, qmin, qmax)


@kernel
def _best_scale(row: np.ndarray, q: np.ndarray, step: np.float32) -> np.float32:
    """Σxq / Σq² with 8 significant bits; the step if all codes are 0. Summed in float64, in a fixed order."""
    a = 0.0
    b = 0.0
    c = 0.0
    d = 0.0
    squares = 0.0
    whole = row.size & ~3
    for j in range(0, whole, 4):
        a += np.float64(to_float32(row[j])) * np.float64(q[j])
        b += np.float64(to_float32(row[j + 1])) * np.float64(q[j + 1])
        c += np.float64(to_float32(row[j + 2])) * np.float64(q[j + 2])
        d += np.float64(to_float32(row[j + 3])) * np.float64(q[j + 3])
    for j in range(whole, row.size):
        a += np.float64(to_float32(row[j])) * np.float64(q[j])
    for j in range(row.size):
        squares += np.float64(q[j]) * np.float64(q[j])  # whole numbers: exact in any order
    if squares == 0.0:
        return short_float(np.float64(step))
    return short_float(((a + b) + (c + d)) / squares)


@kernel
def _store_row(
    row: np.ndarray, q: np.ndarray, scale: np.float32, codes: np.ndarray
) -> tuple[np.float32, np.float32, np.float32, np.int32]:
    """Float32 (Σx², Σx̂², Σ(x-x̂)², max|x-x̂|) of up to _MEASURED values; writes their codes."""
    x_sum = np.float32(0.0)
    d_sum = np.float32(0.0)
    e_sum = np.float32(0.0)
    top = np.int32(0)
    for j in range(row.size):
        x = to_float32(row[j])
        codes[j] = to_code(q[j])
        decoded = q[j] * scale
        error = x - decoded
        x_sum = plus_product(x_sum, x, x)
        d_sum = plus_product(d_sum, decoded, decoded)
        e_sum = plus_product(e_sum, error, error)
        top = larger(float32_bits(abs(error)), top)
    return x_sum, d_sum, e_sum, top


@kernel
def quantize_steps(
    bits: np.ndarray,
    qmin: np.float32,
    qmax: np.float32,
    width: int,
    steps: np.ndarray,
    shifts: np.ndarray,
    codes: np.ndarray,
    scales: np.ndarray,
    scratch: np.ndarray,
    sums: np.ndarray,
    q: np.ndarray,
) -> int:
    """steps: float64 [rows], multiples of each row's root mean square. shifts: float32 [rows], how far boundaries move
    outwards, as fractions of a step. scales: float32 [rows]. q: float32 [columns], scratch. The other arguments and the
    result are as in kernels/quantize.py."""
    for i in range(bits.shape[0]):
        row = bits[i]
        low, high = span(row)
        if not (low > -_INF and high < _INF):
            return i
        plain = codes[i] if width == 8 else scratch
        top = max(abs(low), abs(high))
        if low == high or not (top > _SMALLEST and top < _LARGEST):
            scales[i] = constant_scale(low) if low == high else symmetric_scale(top, qmax)
            encode_run(row, scales[i], np.float32(0.0), qmin, qmax, plain, sums)
        else:
            rms = root_mean_square(row)
            step = row_step(rms, steps[i], np.float64(top), row.size, np.float64(qmax))
            _round_row(row, step, shifts[i], qmin, qmax, q)
            scales[i] = _best_scale(row, q, step)
            _measure(row, q, scales[i], plain, sums)
        if width != 8:
            pack_row(plain, width, codes[i])
    return -1


@kernel
def _measure(row: np.ndarray, q: np.ndarray, scale: np.float32, codes: np.ndarray, sums: np.ndarray) -> None:
    """Writes the codes and adds to `sums`, which are as in encode_run; rows whose squares could leave float32 are
    summed in float64."""
    narrow = scale > np.float32(1e-12) and scale < np.float32(1e12)
    for start in range(0, row.size, _MEASURED):
        part, levels = row[start : start + _MEASURED], q[start : start + _MEASURED]
        out = codes[start : start + _MEASURED]
        if narrow:
            x, y, z, top = _store_row(part, levels, scale, out)
            sums[0] += np.float64(x)
            sums[1] += np.float64(y)
            sums[2] += np.float64(z)
            sums[3] = max(sums[3], np.float64(to_float32(top)))
        else:
            for j in range(part.size):
                value = np.float64(to_float32(part[j]))
                decoded = np.float64(levels[j] * scale)
                out[j] = to_code(levels[j])
                sums[0] += value * value
                sums[1] += decoded * decoded
                sums[2] += (value - decoded) * (value - decoded)
                sums[3] = max(sums[3], abs(value - decoded))


@kernel
def target_steps(target: np.ndarray, relative: np.ndarray, qmax: np.float32, scales: np.ndarray) -> int:
    """The step of each row with 8 significant bits, as in quantize_steps before the scale is fitted to the codes.

    target: bits [rows, n]. relative: float64 [rows], steps as multiples of rows' root mean squares. scales: float32
    [rows], filled. Returns -1, or the first row that holds NaN or inf; scales are then incomplete.
    """
    for i in range(target.shape[0]):
        row = target[i]
        low, high = span(row)
        if not (low > -_INF and high < _INF):
            return i
        top = max(abs(low), abs(high))
        if top > _SMALLEST and top < _LARGEST:
            step = row_step(root_mean_square(row), relative[i], np.float64(top), row.size, np.float64(qmax))
            scales[i] = short_float(np.float64(step))
        else:
            scales[i] = symmetric_scale(top, qmax)
    return -1
