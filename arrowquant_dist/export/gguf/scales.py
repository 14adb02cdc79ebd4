"""V2's scales as GGUF stores them, in fp16, and what that does to the values."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

_LARGEST = 65504.0  # the largest fp16 number
_LEAST_NORMAL = 2.0**-14  # from here on, fp16 numbers have 11 bits; below, they are multiples of 2^-24
_FURTHEST = 512.0  # steps from 0 to a minimum that is rounded by at most a quarter of a step
_AT_ONCE = 1 << 16  # scales: temporaries that stay in the cache


class Fp16(IntEnum):
    """What becomes of values if their scales are fp16.

    HOLDS: no value moves by more than half a step, which is as much as rounding it to a code may have moved it, so the
    codes keep their meaning. ROUNDS: some values move further. Scales below about 1e-5 have few bits in fp16, and in
    the end none, and a minimum far from 0 may be rounded by more than a small scale that goes with it. BEYOND: fp16 has
    no such number (65,504 is its largest).
    """

    HOLDS = 0
    ROUNDS = 1
    BEYOND = 2


def half_scales(scales: np.ndarray) -> np.ndarray:
    """Returns float32 scales as float16; inf beyond its range."""
    from arrowquant_dist.kernels.halves import to_halves

    return to_halves(scales)


def half_minima(scales: np.ndarray, zero_points: np.ndarray, bits: int) -> np.ndarray:
    """Returns float16 minima of the same shape: with u = q + 2^(bits-1), a value is u · scale + minimum. scales,
    zero_points: float32, with x = (q - zero_point) · scale."""
    return _halves(_minima(scales, zero_points, bits))


def fate_of(scales: np.ndarray, zero_points: np.ndarray, bits: int) -> Fp16:
    """Returns what fp16 does to values with such scales, float32, and zero points, float32 or empty. All are finite."""
    worst = Fp16.HOLDS
    for start in range(0, scales.size, _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        if not _surely_holds(scales[part], zero_points[part], bits):
            worst = max(worst, _fate(scales[part], zero_points[part], bits))
    return worst


def _surely_holds(scales: np.ndarray, zero_points: np.ndarray, bits: int) -> bool:
    """Returns whether the smallest and largest numbers alone prove HOLDS, as they nearly always do; rounding each
    number takes ten times as long.

    A scale of size s is rounded by at most 2^-25 or s · 2^-11, whichever is more, which moves a value of 2^(bits-1)
    steps by half a step or less if s is at least 2^(bits-25). With a minimum, it moves a value by up to 2^bits - 1
    times as much: less than a quarter of a step for 4 bits and fewer, and the other quarter is left for the minimum.
    """
    least, largest = float(scales.min()), float(scales.max())
    if least < 0:
        sizes = np.abs(scales)
        least, largest = float(sizes.min()), float(sizes.max())
    if not zero_points.size:
        return least >= 2.0 ** (bits - 25) and largest <= _LARGEST
    furthest = float(np.abs(zero_points).max()) + (1 << (bits - 1))
    return bits <= 4 and least >= _LEAST_NORMAL and furthest <= _FURTHEST and largest * _FURTHEST <= _LARGEST


def _fate(scales: np.ndarray, zero_points: np.ndarray, bits: int) -> Fp16:
    halves = _halves(scales)
    is_finite = np.isfinite(halves)
    if zero_points.size:
        minima = _minima(scales, zero_points, bits)
        lowest = _halves(minima)
        is_finite &= np.isfinite(lowest)
        at_first = lowest.astype(np.float64) - minima
        with np.errstate(invalid="ignore"):  # inf minus inf, in what is BEYOND
            at_last = at_first + (halves.astype(np.float64) - scales) * (2**bits - 1)
        moved = np.maximum(np.abs(at_first), np.abs(at_last))
    else:
        moved = np.abs(halves.astype(np.float64) - scales) * (1 << (bits - 1))
    if not is_finite.all():
        return Fp16.BEYOND
    return Fp16.HOLDS if (moved <= np.abs(scales) / 2).all() else Fp16.ROUNDS


def _minima(scales: np.ndarray, zero_points: np.ndarray, bits: int) -> np.ndarray:
    minima: np.ndarray = (-(2.0 ** (bits - 1)) - zero_points.astype(np.float64)) * scales
    return minima


def _halves(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        halves: np.ndarray = values.astype(np.float16)
        return halves
