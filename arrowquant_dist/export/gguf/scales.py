"""Scales of V2 as GGUF has them, in fp16, and what that does to the values."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from arrowquant_dist.export.short import are_short


class Fp16(IntEnum):
    """What becomes of values when their scales are fp16.

    HOLDS: none moves by more than half a step, which is what rounding it to a code may have moved it, so that codes say
    what they said. ROUNDS: some do. Scales below 1e-5 or so have few bits in fp16, in the end none, and a minimum far
    from 0 may be rounded by more than a small scale beside it. BEYOND: fp16 has no such number (65,504 is its largest).
    """

    HOLDS = 0
    ROUNDS = 1
    BEYOND = 2


def half_scales(scales: np.ndarray, bits: int) -> tuple[np.ndarray, Fp16]:
    """scales: float32, x = q · scale. Returns float16 [the same], and what that does."""
    halves = _halves(scales)
    if are_short(scales):
        return halves, Fp16.HOLDS
    moved = np.abs(halves.astype(np.float64) - scales) * (1 << (bits - 1))
    return halves, _fate(np.isfinite(halves), moved, scales)


def half_minima(
    scales: np.ndarray, zero_points: np.ndarray, bits: int
) -> tuple[np.ndarray, np.ndarray, Fp16]:
    """scales, zero_points: float32, x = (q - zero_point) · scale. Returns float16 scales and minima [the same], and
    what that does: with u = q + 2^(bits-1) a value is u · scale + minimum."""
    minima = (-(2.0 ** (bits - 1)) - zero_points.astype(np.float64)) * scales
    halves, lowest = _halves(scales), _halves(minima)
    at_first = lowest.astype(np.float64) - minima
    with np.errstate(invalid="ignore"):  # inf less inf, of what is BEYOND
        at_last = at_first + (halves.astype(np.float64) - scales) * (2**bits - 1)
    moved = np.maximum(np.abs(at_first), np.abs(at_last))
    return halves, lowest, _fate(np.isfinite(halves) & np.isfinite(lowest), moved, scales)


def _halves(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        halves: np.ndarray = values.astype(np.float16)
        return halves


def _fate(is_finite: np.ndarray, moved: np.ndarray, scales: np.ndarray) -> Fp16:
    if not is_finite.all():
        return Fp16.BEYOND
    return Fp16.HOLDS if (moved <= np.abs(scales) / 2).all() else Fp16.ROUNDS
