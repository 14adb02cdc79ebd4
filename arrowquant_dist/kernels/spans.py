"""Largest magnitude, minimum and maximum of a run of source bits."""

from __future__ import annotations

import numpy as np

from arrowquant_dist.kernels.bits import as_bits, larger, magnitude, ordered, smaller, to_float32
from arrowquant_dist.kernels.compile import kernel

_CHUNK = 1 << 16  # values that first_non_finite checks together: they stay in the cache


@kernel
def largest_magnitude(run: np.ndarray) -> np.float32:
    """run: source bits [n], n ≥ 1. Returns max|x| as float32; inf or NaN if the run contains one."""
    top = magnitude(run[0])
    for j in range(run.size):
        top = larger(magnitude(run[j]), top)
    return to_float32(as_bits(top, run[0]))


@kernel
def span(run: np.ndarray) -> tuple[np.float32, np.float32]:
    """run: source bits [n], n ≥ 1. Returns (min, max) as float32; one of them is not finite if the run contains inf or
    NaN."""
    low = ordered(run[0])
    high = low
    for j in range(run.size):
        key = ordered(run[j])
        low = smaller(key, low)
        high = larger(key, high)
    return (
        to_float32(as_bits(ordered(as_bits(low, run[0])), run[0])),
        to_float32(as_bits(ordered(as_bits(high, run[0])), run[0])),
    )


def first_non_finite(bits: np.ndarray) -> int:
    """Index of the first NaN or inf among source bits, in C order; -1 if none.

    bits: int32, uint16 or int16, or int64 (float64), any shape, C order.
    """
    exponent = {"i8": 0x7FF << 52, "i4": 0x7F800000, "u2": 0x7F80, "i2": 0x7C00}[bits.dtype.str[1:]]
    flat = bits.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        bad = (flat[start : start + _CHUNK] & exponent) == exponent
        if bad.any():
            return start + int(bad.argmax())
    return -1
