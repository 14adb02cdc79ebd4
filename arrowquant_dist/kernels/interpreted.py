"""The kernels' single instructions in plain Python, for processes in which Numba compiles nothing (NUMBA_DISABLE_JIT=1:
to step through kernels with a debugger, or where no machine code may be made). Slow, with the same bits as results.

Each function has the arguments of its namesake in bits.py, sources.py or multiply.py. Scalars are numpy's, and their
dtype matters.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_BFLOAT16_MAX = np.float32(3.3895313892515355e38)
_FLOAT16_MAX = np.float32(65504.0)


def to_float32(bits: Any) -> np.float32:
    if bits.dtype == np.uint16:
        return np.float32((np.uint32(bits) << np.uint32(16)).view(np.float32))
    return np.float32(bits.view(np.float16 if bits.dtype == np.int16 else np.float32))


def magnitude(bits: Any) -> Any:
    unsigned = np.uint32 if bits.dtype == np.int32 else np.uint16
    return bits.view(unsigned) & unsigned((1 << (8 * bits.itemsize - 1)) - 1)


def ordered(bits: Any) -> Any:
    signed = np.int32 if bits.dtype == np.int32 else np.int16
    value = bits.view(signed)
    return value ^ signed((1 << (8 * bits.itemsize - 1)) - 1) if value < 0 else value


def as_bits(value: Any, like: Any) -> Any:
    return value.view(like.dtype)


def larger(left: Any, right: Any) -> Any:
    return left if left > right else right


def smaller(left: Any, right: Any) -> Any:
    return left if left < right else right


def round_half_even(value: Any) -> np.float32:
    return np.float32(np.rint(np.float32(value)))


def to_code(value: Any) -> np.uint8:
    return np.uint8(int(value) & 255)


def from_code(code: Any) -> np.float32:
    return np.float32(np.uint8(code).view(np.int8))


def float32_bits(value: Any) -> Any:
    return np.float32(value).view(np.int32)


def to_bits(value: Any, like: Any) -> Any:
    if like.dtype == np.int32:
        return float32_bits(value)
    limit = _BFLOAT16_MAX if like.dtype == np.uint16 else _FLOAT16_MAX
    held = larger(smaller(np.float32(value), limit), -limit)
    return _to_bfloat16(held) if like.dtype == np.uint16 else np.float16(held).view(np.int16)


def rounded(value: Any, like: Any) -> Any:
    if np.isnan(value):
        nan = {"int32": 0x7FC00000, "uint16": 0x7FC0, "int16": 0x7E00}[like.dtype.name]
        return like.dtype.type(nan)
    if like.dtype == np.int32:
        return float32_bits(value)
    return _to_bfloat16(value) if like.dtype == np.uint16 else np.float16(value).view(np.int16)


def _to_bfloat16(value: Any) -> np.uint16:
    """float32 → the bits of a bfloat16, half to even; inf beyond its range. `value` is not NaN."""
    bits = int(np.float32(value).view(np.uint32))
    return np.uint16(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) & 0xFFFF)


def strip_width() -> int:
    return 8


def add_tile(left: Any, right: Any, right_at: int, out: Any, out_at: int, stride: int, depth: int) -> None:
    columns = np.arange(strip_width())
    for i in range(8):
        found = out[out_at + stride * i + columns]
        for k in range(depth):
            found = _fused(left[8 * k + i], right[right_at + 32 * k + columns], found)
        out[out_at + stride * i + columns] = found


def _fused(value: Any, others: Any, added: Any) -> Any:
    """value · others + added in float32, rounded once: the exact sum is first rounded to odd in float64."""
    product, more = np.float64(value) * others.astype(np.float64), added.astype(np.float64)
    total = product + more
    part = total - product
    left = (product - (total - part)) + (more - part)
    is_even = (total.view(np.int64) & 1) == 0
    moved = np.nextafter(total, np.copysign(np.inf, left))
    return np.where((left != 0) & is_even, moved, total).astype(np.float32)
