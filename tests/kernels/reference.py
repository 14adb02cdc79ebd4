"""The V2 formulas as plain loops over Python numbers: slow, obvious, and sharing nothing with the package.

Scales are computed in float64. Codes and decoded values are computed in float32 with one rounding per operation, as the
format defines them: q = round(x / scale + zero_point), x̂ = (q - zero_point) · scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np


def limits(bits: int) -> tuple[int, int]:
    """(qmin, qmax): the smallest and the largest code."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def group_slices(columns: int, group_size: int) -> list[slice]:
    """Slices of the groups along a row, of which the last may be short; group_size 0: the whole row."""
    size = group_size or columns
    return [slice(start, min(start + size, columns)) for start in range(0, columns, size)]


def symmetric_scale(values: Sequence[float], bits: int) -> float:
    return max(abs(x) for x in values) / limits(bits)[1]


def asymmetric_scale(values: Sequence[float], bits: int) -> float:
    qmin, qmax = limits(bits)
    return (max(values) - min(values)) / (qmax - qmin)


def whole_asymmetric_scale(values: Sequence[float], bits: int) -> float:
    """The scale with a whole zero point. The range is widened to hold 0, since otherwise no whole zero point in
    [qmin, qmax] would do."""
    return asymmetric_scale([*values, 0.0], bits)


def code(x: np.float32, scale: np.float32, zero_point: np.float32, bits: int) -> int:
    """The code of x. np.rint rounds ties to even."""
    qmin, qmax = limits(bits)
    with np.errstate(over="ignore"):
        return int(min(max(float(np.rint(x / scale + zero_point)), qmin), qmax))


def decoded(q: int, scale: np.float32, zero_point: np.float32) -> np.float32:
    return (np.float32(q) - zero_point) * scale


def packed_row(codes: Sequence[int], bits: int) -> bytes:
    """One row, packed: unsigned codes as the digits of one little-endian number; for int8 a signed byte per value."""
    if bits == 8:
        return b"".join(q.to_bytes(1, "little", signed=True) for q in codes)
    number = sum((q - limits(bits)[0]) << (bits * i) for i, q in enumerate(codes))
    return number.to_bytes(math.ceil(len(codes) * bits / 8), "little")


def unpacked_row(row: bytes, columns: int, bits: int) -> list[int]:
    if bits == 8:
        return [int.from_bytes(row[i : i + 1], "little", signed=True) for i in range(columns)]
    number = int.from_bytes(row, "little")
    return [((number >> (bits * i)) & (2**bits - 1)) + limits(bits)[0] for i in range(columns)]


def unpacked_rows(data: bytes, rows: int, columns: int, bits: int) -> np.ndarray:
    """The signed codes, int64 [rows, columns]."""
    width = math.ceil(columns * bits / 8)
    return np.array([unpacked_row(data[i * width : (i + 1) * width], columns, bits) for i in range(rows)])


def int32_words(codes: Sequence[int], bits: int) -> list[int]:
    """compressed-tensors' pack-quantized format: each int32 is filled from its low bits, one code after the other.

    Only for rows that fill whole words with whole codes (2, 4 and 8 bits).
    """
    per_word = 32 // bits
    words = []
    for start in range(0, len(codes), per_word):
        word = 0
        for i, q in enumerate(codes[start : start + per_word]):
            word |= (q - limits(bits)[0]) << (i * bits)
        words.append(word)
    return words


def best_symmetric_error(values: np.ndarray, bits: int) -> float:
    """The least Σ(x - scale · q)² over every assignment of codes; few values and bits only."""
    q = _assignments(values.size, bits)
    squares = (q * q).sum(1)
    gains = (q @ values)[squares > 0] ** 2 / squares[squares > 0]
    return float(values @ values - gains.max())


def best_asymmetric_error(values: np.ndarray, bits: int) -> float:
    """The least Σ(x - scale · (q - zero_point))²: a regression with an intercept for every assignment of codes."""
    q = _assignments(values.size, bits)
    q = q - q.mean(1, keepdims=True)
    x = values - values.mean()
    variance = (q * q).sum(1)
    gains = (q @ x)[variance > 0] ** 2 / variance[variance > 0]
    return float(x @ x - gains.max())


def _assignments(count: int, bits: int) -> np.ndarray:
    qmin, qmax = limits(bits)
    levels = [np.arange(qmin, qmax + 1.0)] * count
    return np.stack(np.meshgrid(*levels), -1).reshape(-1, count)


def groups_of(matrix: np.ndarray, group_size: int) -> Iterator[np.ndarray]:
    """The groups of all rows, in the order of V2's scales."""
    for row in matrix:
        for part in group_slices(matrix.shape[1], group_size):
            yield row[part]
