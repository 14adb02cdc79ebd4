"""Inputs times packed rows: a row is decoded into the cache and multiplied there with all inputs.

This takes one pass over the codes for any number of inputs. A single input is multiplied by vectors.py if the layout of
codes and groups allows it; this module does the rest, and several inputs. Four rows and four inputs at a time keep 16
sums in registers: 75 to 80 GFLOP/s on a core of a Zen 4, where its BLAS reaches 94, without starting a team of threads.
Codes are unpacked into the first-level cache before they are multiplied; one loop serves every width.

Sums are in float32, in an order that the compiler chooses. No scale or code of a dataset depends on them.
"""

from __future__ import annotations

import numpy as np

from arrowquant_dist.kernels.bits import from_code
from arrowquant_dist.kernels.compile import any_order, kernel
from arrowquant_dist.kernels.decode import dequantize_rows
from arrowquant_dist.kernels.pack import unpack_row
from arrowquant_dist.kernels.products import BLOCK
from arrowquant_dist.kernels.products.arranged import fits_zero_points
from arrowquant_dist.kernels.products.vectors import multiply_four


@any_order
def _dot_codes(codes: np.ndarray, values: np.ndarray) -> np.float32:
    total = np.float32(0)
    for j in range(codes.size):
        total += from_code(codes[j]) * values[j]
    return total


@any_order
def _dot_codes_around(codes: np.ndarray, zero_point: np.float32, values: np.ndarray) -> np.float32:
    """The zero point is subtracted from each code, as in decoding, because it may be far larger than the difference."""
    total = np.float32(0)
    for j in range(codes.size):
        total += (from_code(codes[j]) - zero_point) * values[j]
    return total


@kernel
def _multiply_rest(
    codes: np.ndarray,
    width: int,
    group: int,
    scales: np.ndarray,
    zero_points: np.ndarray,
    values: np.ndarray,
    first: int,
    scratch: np.ndarray,
) -> np.float32:
    """One decoded row times the inputs, both from column `first` on, which is on a byte boundary."""
    columns = values.size - first
    plain = codes[first * width // 8 :]
    if width != 8:
        unpack_row(plain, width, scratch[:columns])
        plain = scratch
    total = np.float32(0)
    for k in range(first // group, scales.size):
        start = max(k * group, first)
        stop = min((k + 1) * group, values.size)
        found = plain[start - first : stop - first]
        if zero_points.size == 0:
            total += scales[k] * _dot_codes(found, values[start:stop])
        else:
            total += scales[k] * _dot_codes_around(found, zero_points[k], values[start:stop])
    return total


@kernel
def multiply_one(
    codes: np.ndarray,
    width: int,
    group: int,
    scales: np.ndarray,
    zero_points: np.ndarray,
    values: np.ndarray,
    arranged: np.ndarray,
    sums: np.ndarray,
    start: int,
    stop: int,
    scratch: np.ndarray,
    out: np.ndarray,
) -> None:
    """out[start:stop] = decoded rows [start, stop) · values. Each group's sum of products with codes is multiplied by
    its scale.

    codes: uint8 [rows, row bytes]. width: bits per code. group: values per scale. scales: float32 [rows, groups].
    zero_points: the same, or [rows, 0] if symmetric. values: float32 [columns]. arranged, sums: the values for vectors,
    as made by arranged.py; empty if vectors process none. scratch: uint8 [columns]. out: float32 [rows].
    """
    for i in range(start, stop, BLOCK):
        row = max(start, min(i, stop - BLOCK))  # the last four rows may overlap those before
        last = min(row + BLOCK, stop)
        by_vectors = last - row == BLOCK and fits_zero_points(width, zero_points[row:last])
        done = arranged.size if by_vectors else 0
        out[row:last] = 0
        if done > 0:
            multiply_four(codes, width, group, scales, zero_points, arranged, sums, row, out)
        if done == values.size:
            continue
        for j in range(row, last):
            out[j] += _multiply_rest(codes[j], width, group, scales[j], zero_points[j], values, done, scratch)


@any_order
def _dot(row: np.ndarray, values: np.ndarray) -> np.float32:
    total = np.float32(0)
    for j in range(row.size):
        total += row[j] * values[j]
    return total


@any_order
def _dots(rows: np.ndarray, values: np.ndarray, out: np.ndarray) -> None:
    """out[m, n] = values[m] · rows[n], float32 [4, 4]. rows, values: float32 [4, columns]."""
    row0, row1, row2, row3 = rows[0], rows[1], rows[2], rows[3]
    value0, value1, value2, value3 = values[0], values[1], values[2], values[3]
    zero = np.float32(0)
    a0, a1, a2, a3 = zero, zero, zero, zero
    b0, b1, b2, b3 = zero, zero, zero, zero
    c0, c1, c2, c3 = zero, zero, zero, zero
    d0, d1, d2, d3 = zero, zero, zero, zero
    for j in range(row0.size):
        w0, w1, w2, w3 = row0[j], row1[j], row2[j], row3[j]
        x0, x1, x2, x3 = value0[j], value1[j], value2[j], value3[j]
        a0 += x0 * w0
        a1 += x0 * w1
        a2 += x0 * w2
        a3 += x0 * w3
        b0 += x1 * w0
        b1 += x1 * w1
        b2 += x1 * w2
        b3 += x1 * w3
        c0 += x2 * w0
        c1 += x2 * w1
        c2 += x2 * w2
        c3 += x2 * w3
        d0 += x3 * w0
        d1 += x3 * w1
        d2 += x3 * w2
        d3 += x3 * w3
    out[0, 0], out[0, 1], out[0, 2], out[0, 3] = a0, a1, a2, a3
    out[1, 0], out[1, 1], out[1, 2], out[1, 3] = b0, b1, b2, b3
    out[2, 0], out[2, 1], out[2, 2], out[2, 3] = c0, c1, c2, c3
    out[3, 0], out[3, 1], out[3, 2], out[3, 3] = d0, d1, d2, d3


@kernel
def multiply_rows(
    codes: np.ndarray,
    width: int,
    group: int,
    scales: np.ndarray,
    zero_points: np.ndarray,
    values: np.ndarray,
    start: int,
    stop: int,
    scratch: np.ndarray,
    rows: np.ndarray,
    row_bits: np.ndarray,
    out: np.ndarray,
) -> None:
    """out[:, start:stop] = values · decoded rows [start, stop).

    codes, width, group, scales, zero_points: as in multiply_one. values: float32 [inputs, columns]. scratch: uint8
    [columns + 8]. rows: float32 [4, columns], also scratch. row_bits: the same memory as int32. out: float32
    [inputs, rows].
    """
    inputs = values.shape[0]
    for i in range(start, stop, BLOCK):
        last = min(i + BLOCK, stop)
        count = last - i
        decoded = row_bits[:count]
        dequantize_rows(codes[i:last], width, group, scales[i:last], zero_points[i:last], 0, scratch, decoded)
        done = inputs // BLOCK * BLOCK if count == BLOCK else 0
        for m in range(0, done, BLOCK):
            _dots(rows, values[m : m + BLOCK], out[m : m + BLOCK, i:last])
        for m in range(done, inputs):
            for n in range(count):
                out[m, i + n] = _dot(rows[n], values[m])
