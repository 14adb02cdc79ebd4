"""Source values in the form that kernels take: integer arrays that hold the bits of floats."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.errors import UnquantizableWeights

_WIDENED_AT_ONCE = 1 << 18
# The dtypes that kernels decode to, each with the integer dtype that stands for its bits.
DECODED_BITS = {"float32": "<i4", "bfloat16": "<u2", "float16": "<i2"}


def matrix_shape(shape: tuple[int, ...], row_dims: int) -> tuple[int, int]:
    """(rows, columns) of a layer or block seen as a matrix; a 0-D tensor is 1 × 1."""
    return math.prod(shape[:row_dims]), math.prod(shape[row_dims:])


def kernel_bits(values: np.ndarray, dtype: str) -> np.ndarray:
    """values: uint8 [nbytes], little-endian values of a float dtype. Returns int32, uint16 or int16 bits [values].

    float32, bfloat16 and float16 are views. float64 is rounded to float32 (beyond its range: inf), float8 widened
    exactly; both take 4 bytes a value.
    """
    if dtype in DECODED_BITS:
        return values.view(DECODED_BITS[dtype])
    if dtype == "float64":
        with np.errstate(over="ignore", invalid="ignore"):
            return values.view("<f8").astype(np.float32).view("<i4")
    return _widened(values, _float8_table(dtype)).view("<i4")


def read_only(array: np.ndarray) -> np.ndarray:
    """A read-only view. Kernels take all inputs read-only, so that one compilation serves writable and read-only ones.

    Only misaligned arrays are copied.
    """
    view = array.view() if array.flags.aligned else array.copy()
    view.flags.writeable = False
    return view


def _widened(codes: np.ndarray, table: np.ndarray) -> np.ndarray:
    """float32 [codes]: table[code] for each code, in pieces, because numpy turns each index into an int64."""
    wide = np.empty(codes.size, np.float32)
    for start in range(0, codes.size, _WIDENED_AT_ONCE):
        part = slice(start, start + _WIDENED_AT_ONCE)
        wide[part] = table[codes[part]]
    return wide


@cache
def _float8_table(dtype: str) -> np.ndarray:
    """float32 [256]: the value of each float8 code (OCP 8-bit floating point: e4m3fn has no inf, e5m2 is IEEE-like,
    e8m0 is an exponent alone)."""
    if dtype == "float8_e8m0fnu":
        powers = np.full(256, np.nan, np.float32)
        powers[:255] = np.ldexp(1.0, np.arange(255) - 127)
        return powers
    exponent_bits, bias = {"float8_e4m3fn": (4, 7), "float8_e5m2": (5, 15)}[dtype]
    mantissa_bits = 7 - exponent_bits
    codes = np.arange(256)
    mantissa = (codes & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    exponent = (codes >> mantissa_bits) & ((1 << exponent_bits) - 1)
    value = np.where(exponent == 0, np.ldexp(mantissa, 1 - bias), np.ldexp(1.0 + mantissa, exponent - bias))
    if dtype == "float8_e4m3fn":
        value[(codes & 0x7F) == 0x7F] = np.nan
    else:
        special = exponent == 31
        value[special] = np.where(mantissa[special] == 0, np.inf, np.nan)
    return np.where(codes & 0x80, -value, value).astype(np.float32)


def check_finite(
    values: np.ndarray, dtype: str, shape: tuple[int, ...], first_value: int, layer: str | None
) -> None:
    """Raises UnquantizableWeights, naming the index of the first NaN or inf, if `values` (uint8 [nbytes]) has one.

    shape: shape of the whole layer. first_value: index, in C order, of the first of these values in the layer.
    """
    from arrowquant_dist.kernels.spans import first_non_finite

    bad = first_non_finite(values.view("<i8") if dtype == "float64" else kernel_bits(values, dtype))
    if bad >= 0:
        itemsize = DTYPES[dtype].itemsize
        value = as_float32(values[bad * itemsize : (bad + 1) * itemsize], dtype)[0]
        where = [int(i) for i in np.unravel_index(first_value + bad, shape)] if shape else []
        raise UnquantizableWeights(
            f"{'NaN' if np.isnan(value) else 'inf'} at index {where}; fix the source, or set `non_finite: keep` in "
            "the config to store such a layer unquantized",
            layer=layer,
        )


def as_float32(values: np.ndarray, dtype: str) -> np.ndarray:
    """values: uint8 [nbytes] of a float dtype. Returns float32 [values]."""
    bits = kernel_bits(values, dtype)
    if bits.dtype == np.dtype("<i4"):
        return bits.view("<f4")
    if bits.dtype == np.dtype("<u2"):
        return (bits.astype("<u4") << 16).view("<f4")
    return bits.view("<f2").astype(np.float32)
