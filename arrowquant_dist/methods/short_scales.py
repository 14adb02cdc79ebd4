"""Scales that are bfloat16 or float16 numbers: another method's, rounded, and codes chosen again for these.

Programs that keep scales in the dtype of a 16-bit model round what is stored; with codes that were chosen for the
numbers they then have, they decode what we do. A scale is rounded away from zero, so that no value is clipped that was
not: by less than 1/128 to bfloat16, by less than 1/1024 to float16, and there by less than 2^-24 where that is more.
Where all scales are such numbers, as mse's below 8 bits mostly are for bfloat16, the codes stay too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.methods.groups import code_limits, error_sums
from arrowquant_dist.methods.method import Found, Given, Method, SideInput

_OF_FLOAT16 = np.dtype("<i2")  # the bits of values of a float16 source
_DROPPED = np.uint32(0xFFFF)  # what bfloat16 has not of a float32
_HUGE = np.float32(1e36)  # beyond it the outermost level of a larger scale may leave float32
_LEAST_HALF = np.float32(
    2.0**-25
)  # half of float16's smallest number, to which less would be more than doubled


@dataclass(frozen=True, slots=True)
class ShortScales:
    """By row or group. method: one whose codes are its values rounded to the nearest level, as rtn's and mse's are."""

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
        )  # whose values that number divides
        scales = short_scales(found.scales, spec.scale_dtype, least)
        zero_points = short_zero_points(found.zero_points, found.scales, scales, spec)
        rows, columns = bits.shape
        group = spec.group_size if spec.stored_group_size else columns
        by_row = (scales.reshape(rows, -1), zero_points.reshape(rows, -1))
        scratch, sums = np.empty(columns, np.uint8), np.zeros(4)
        quantize_with_scales(bits, group, *by_row, *code_limits(spec), spec.bits, codes, scratch, sums)
        return Found(scales, zero_points, error_sums(bits.size, sums))


def short_scales(scales: np.ndarray, dtype: str = "bfloat16", least: np.float32 = _LEAST_HALF) -> np.ndarray:
    """float32 scales → the next numbers of `dtype` away from zero, as float32; themselves where they are such numbers.

    bfloat16: those beyond 1e36 are rounded towards zero. float16: those beyond its range, and those below `least` that
    are not 0, stay what they are, which `are_halves` tells.
    """
    return _halves(scales, least) if dtype == "float16" else _bfloat16s(scales)


def are_halves(scales: np.ndarray) -> bool:
    """Whether all of these float32 numbers are float16 ones."""
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
    """What the zero points are once `scales` are `rounded`: whole ones stay, since 0 stays where it is and the range
    only grows; real ones keep the middle of the range."""
    if spec.symmetric or spec.integer_zero_points:
        return zero_points
    qmin, qmax = code_limits(spec)
    middle = (np.float64(qmin) + np.float64(qmax)) / 2
    moved = middle - (middle - zero_points.astype(np.float64)) * (scales.astype(np.float64) / rounded)
    return np.where(rounded == scales, zero_points, moved.astype(np.float32))
