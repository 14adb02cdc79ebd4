"""Scales that are bfloat16 or float16 numbers: those of another method, rounded, with codes chosen again for them.

Programs that keep scales in the dtype of a 16-bit model round the stored ones; if codes were chosen for the rounded
scales, these programs decode the same values as we do. A scale is rounded away from zero, so that no further value is
clipped: by less than 1/128 of it to bfloat16, and to float16 by less than 1/1024 of it or 2^-24, whichever is more. If
all scales are such numbers already, as those of mse below 8 bits mostly are for bfloat16, the codes stay the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.methods.groups import code_limits, error_sums
from arrowquant_dist.methods.method import Found, Given, Method, SideInput

_OF_FLOAT16 = np.dtype("<i2")  # the bits of values of a float16 source
_DROPPED = np.uint32(0xFFFF)  # the bits of a float32 that bfloat16 does not have
_HUGE = np.float32(1e36)  # with a larger scale, rounded up, the outermost level may be beyond float32
_LEAST_HALF = np.float32(
    2.0**-25
)  # half of float16's smallest number: rounding up to that would more than double anything less


@dataclass(frozen=True, slots=True)
class ShortScales:
    """A method by row or group. method: one that rounds each value to the nearest level, as rtn and mse do."""

    method: Method

    @property
    def name(self) -> str:
        return self.method.name

    @property
    def side_input(self) -> SideInput | None:
        return self.method.side_input

    def quantize(self, bits: np.ndarray, spec: QuantSpec, codes: np.ndarray, given: Given, /) -> Found | None:
        """See Method.quantize."""
        from arrowquant_dist.kernels.quantize import quantize_with_scales

        found = self.method.quantize(bits, spec, codes, given)
        if found is None:
            return None
        least = (
            np.float32(0) if bits.dtype == _OF_FLOAT16 else _LEAST_HALF
        )  # all float16 values are multiples of float16's smallest number
        scales = short_scales(found.scales, spec.scale_dtype, least)
        zero_points = short_zero_points(found.zero_points, found.scales, scales, spec)
        rows, columns = bits.shape
        group = spec.group_size if spec.stored_group_size else columns
        by_row = (scales.reshape(rows, -1), zero_points.reshape(rows, -1))
        scratch, sums = np.empty(columns, np.uint8), np.zeros(4)
        quantize_with_scales(bits, group, *by_row, *code_limits(spec), spec.bits, codes, scratch, sums)
        return Found(scales, zero_points, error_sums(bits.size, sums))


def short_scales(scales: np.ndarray, dtype: str = "bfloat16", least: np.float32 = _LEAST_HALF) -> np.ndarray:
    """float32 scales rounded away from zero to numbers of `dtype`, as float32; numbers of `dtype` stay as they are.

    bfloat16: scales beyond 1e36 are rounded towards zero. float16: scales beyond its range, and those below `least`
    that are not 0, stay as they are, which `are_halves` detects.
    """
    return _halves(scales, least) if dtype == "float16" else _bfloat16s(scales)


def are_halves(scales: np.ndarray) -> bool:
    """Whether float16 represents all of these float32 numbers exactly."""
    with np.errstate(over="ignore"):
        return np.array_equal(scales.astype(np.float16).astype(np.float32), scales)


def _bfloat16s(scales: np.ndarray) -> np.ndarray:
    stored = np.ascontiguousarray(scales, "<f4")
    added = np.where(np.abs(stored) > _HUGE, np.uint32(0), _DROPPED)
    return np.asarray(((stored.view("<u4") + added) & ~_DROPPED).view("<f4"))


def _halves(scales: np.ndarray, least: np.float32) -> np.ndarray:
    with np.errstate(over="ignore"):
        halves = scales.astype(np.float16)
        is_less = np.abs(halves.astype(np.float32)) < np.abs(scales)
        away = np.copysign(np.float16(np.inf), halves)
        rounded = np.where(is_less, np.nextafter(halves, away), halves).astype(np.float32)
    is_held = np.isfinite(rounded) & ((np.abs(scales) >= least) | (scales == 0))
    return np.where(is_held, rounded, scales)


def short_zero_points(
    zero_points: np.ndarray, scales: np.ndarray, rounded: np.ndarray, spec: QuantSpec
) -> np.ndarray:
    """The zero points after rounding `scales` to `rounded`. Whole zero points stay, because 0 keeps its code and the
    range only grows; real ones are moved so that the middle of the range stays."""
    if spec.symmetric or spec.integer_zero_points:
        return zero_points
    qmin, qmax = code_limits(spec)
    middle = (np.float64(qmin) + np.float64(qmax)) / 2
    moved = middle - (middle - zero_points.astype(np.float64)) * (scales.astype(np.float64) / rounded)
    return np.where(rounded == scales, zero_points, moved.astype(np.float32))
