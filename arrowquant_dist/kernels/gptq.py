"""Codes whose errors make up for each other: the kernels of gptq, which work on columns of weights.

All arrays are [columns, rows]: a column of many rows of weights is contiguous, its rows are side by side in the CPU's
vectors, and the arithmetic for a row does not depend on its neighbours.
"""

from __future__ import annotations

import numpy as np

from arrowquant_dist.kernels.bits import from_code, larger, round_half_even, smaller, to_code, to_float32
from arrowquant_dist.kernels.compile import kernel, plus_product
from arrowquant_dist.kernels.pack import pack_row
from arrowquant_dist.kernels.steps import shifted_code

_EDGE = 64  # of the squares that are transposed at a time


@kernel
def load_columns(bits: np.ndarray, columns: np.ndarray) -> None:
    """Transposes values. bits: source bits [rows, n]. columns: float32 [n, rows], filled."""
    for start in range(0, bits.shape[1], _EDGE):
        stop = min(start + _EDGE, bits.shape[1])
        for i in range(bits.shape[0]):
            for j in range(start, stop):
                columns[j, i] = to_float32(bits[i, j])


@kernel
def rows_of(columns: np.ndarray, rows: np.ndarray) -> None:
    """Transposes columns back to rows. rows: float32 [rows, n], filled."""
    for start in range(0, rows.shape[1], _EDGE):
        stop = min(start + _EDGE, rows.shape[1])
        for i in range(rows.shape[0]):
            for j in range(start, stop):
                rows[i, j] = columns[j, i]


@kernel
def _add_products(
    a: np.float32,
    b: np.float32,
    c: np.float32,
    d: np.float32,
    values: np.ndarray,
    total: np.ndarray,
) -> None:
    """values: float32 [4, n]; total: [n]."""
    p, q, r, s = values[0], values[1], values[2], values[3]
    for j in range(total.size):
        total[j] += a * p[j] + b * q[j] + (c * r[j] + d * s[j])


@kernel
def _add_product(a: np.float32, values: np.ndarray, total: np.ndarray) -> None:
    for j in range(total.size):
        total[j] += a * values[j]


@kernel
def _round_column(
    errors: np.ndarray,
    carried: np.ndarray,
    scales: np.ndarray,
    zero_points: np.ndarray,
    qmin: np.float32,
    qmax: np.float32,
    codes: np.ndarray,
) -> None:
    for j in range(errors.size):
        value = errors[j] + carried[j]
        q = round_half_even(smaller(larger(value / scales[j] + zero_points[j], qmin), qmax))
        codes[j] = to_code(q)
        errors[j] -= (q - zero_points[j]) * scales[j]


@kernel
def _round_column_inwards(
    errors: np.ndarray,
    carried: np.ndarray,
    scales: np.ndarray,
    shift: np.float32,
    qmin: np.float32,
    qmax: np.float32,
    codes: np.ndarray,
) -> None:
    for j in range(errors.size):
        q = shifted_code((errors[j] + carried[j]) / scales[j], shift, qmin, qmax)
        codes[j] = to_code(q)
        errors[j] -= q * scales[j]


@kernel
def _carry(lower: np.ndarray, start: int, i: int, errors: np.ndarray, carried: np.ndarray) -> None:
    """Adds to carried[i] what column i has to make up for the errors of the columns after it, which are rounded. See
    round_columns."""
    k = i + 1
    while k + 4 <= errors.shape[0]:
        at = start + k
        _add_products(
            lower[at, start + i],
            lower[at + 1, start + i],
            lower[at + 2, start + i],
            lower[at + 3, start + i],
            errors[k : k + 4],
            carried[i],
        )
        k += 4
    while k < errors.shape[0]:
        _add_product(lower[start + k, start + i], errors[k], carried[i])
        k += 1


@kernel
def round_columns(
    lower: np.ndarray,
    start: int,
    errors: np.ndarray,
    carried: np.ndarray,
    groups: np.ndarray,
    scales: np.ndarray,
    zero_points: np.ndarray,
    qmin: np.float32,
    qmax: np.float32,
    codes: np.ndarray,
) -> None:
    """Chooses the codes of some columns, from the last to the first, each making up for the errors of those rounded
    before.

    lower: float32 [n, n], L of H = L D Lᵀ. start: index in L of the first of these columns. errors: float32 [m, rows],
    the target's values, which are replaced by their differences from the decoded values. carried: float32 [m, rows],
    Σ error · L over the columns that were rounded before, to which those of these columns are added. groups: int64 [m],
    the row of `scales` and `zero_points` (float32 [groups, rows]) for each column. codes: uint8 [m, rows], receives
    signed codes in two's complement.
    """
    for i in range(groups.size - 1, -1, -1):
        _carry(lower, start, i, errors, carried)
        group = groups[i]
        _round_column(errors[i], carried[i], scales[group], zero_points[group], qmin, qmax, codes[i])


@kernel
def round_columns_inwards(
    lower: np.ndarray,
    start: int,
    errors: np.ndarray,
    carried: np.ndarray,
    scales: np.ndarray,
    shifts: np.ndarray,
    qmin: np.float32,
    qmax: np.float32,
    codes: np.ndarray,
) -> None:
    """Like round_columns, with one scale per row, float32 [rows], and boundaries between codes further from zero than
    midway. shifts: float32 [m], by how much for each column, as fractions of a step."""
    for i in range(shifts.size - 1, -1, -1):
        _carry(lower, start, i, errors, carried)
        _round_column_inwards(errors[i], carried[i], scales, shifts[i], qmin, qmax, codes[i])


@kernel
def _round_column_by_row(
    errors: np.ndarray,
    carried: np.ndarray,
    scales: np.ndarray,
    shifts: np.ndarray,
    factor: np.float32,
    qmin: np.float32,
    qmax: np.float32,
    codes: np.ndarray,
) -> None:
    for j in range(errors.size):
        shift = smaller(shifts[j] * factor, np.float32(0.5))
        q = shifted_code((errors[j] + carried[j]) / scales[j], shift, qmin, qmax)
        codes[j] = to_code(q)
        errors[j] -= q * scales[j]


@kernel
def round_columns_by_row(
    lower: np.ndarray,
    start: int,
    errors: np.ndarray,
    carried: np.ndarray,
    scales: np.ndarray,
    shifts: np.ndarray,
    factors: np.ndarray,
    qmin: np.float32,
    qmax: np.float32,
    codes: np.ndarray,
) -> None:
    """Like round_columns_inwards, for rows with different steps: boundaries are moved by shifts · factors, at most half
    a step. shifts: float32 [rows]. factors: float32 [m]."""
    for i in range(factors.size - 1, -1, -1):
        _carry(lower, start, i, errors, carried)
        _round_column_by_row(errors[i], carried[i], scales, shifts, factors[i], qmin, qmax, codes[i])


@kernel
def _measure_run(
    run: np.ndarray, codes: np.ndarray, scale: np.float32, zero_point: np.float32, sums: np.ndarray
) -> None:
    """Adds to `sums`, which are as in encode_run."""
    x_sum = 0.0
    d_sum = 0.0
    e_sum = 0.0
    top = np.float32(0.0)
    for j in range(run.size):
        x = to_float32(run[j])
        decoded = (from_code(codes[j]) - zero_point) * scale
        error = x - decoded
        x_sum = plus_product(x_sum, np.float64(x), np.float64(x))
        d_sum = plus_product(d_sum, np.float64(decoded), np.float64(decoded))
        e_sum = plus_product(e_sum, np.float64(error), np.float64(error))
        top = larger(abs(error), top)
    sums[0] += x_sum
    sums[1] += d_sum
    sums[2] += e_sum
    sums[3] = max(sums[3], np.float64(top))


@kernel
def pack_and_measure(
    bits: np.ndarray,
    group: int,
    scales: np.ndarray,
    zero_points: np.ndarray,
    columns: np.ndarray,
    width: int,
    scratch: np.ndarray,
    codes: np.ndarray,
    sums: np.ndarray,
) -> None:
    """Packs chosen codes as in V2, and measures their errors against the source's values.

    bits: source bits [rows, n]. group, scales, zero_points, width, codes, sums: as in kernels/quantize.py.
    columns: uint8 [n, rows], signed codes in two's complement. scratch: uint8 [≥ _EDGE, n].
    """
    n = bits.shape[1]
    for start in range(0, bits.shape[0], _EDGE):
        some = min(_EDGE, bits.shape[0] - start)
        for j in range(n):
            for i in range(some):
                scratch[i, j] = columns[j, start + i]
        for i in range(some):
            row, plain = start + i, scratch[i]
            for k in range(scales.shape[1]):
                stop = min((k + 1) * group, n)
                zero_point = zero_points[row, k] if zero_points.shape[1] > 0 else np.float32(0.0)
                at = k * group
                _measure_run(bits[row, at:stop], plain[at:stop], scales[row, k], zero_point, sums)
            if width == 8:
                for j in range(n):
                    codes[row, j] = plain[j]
            else:
                pack_row(plain, width, codes[row])
