"""Codes of quantized sources → values in IEEE float32, rounded once to the requested dtype, half to even.

x = (code - zero point) · scale; for affine codes code · scale + bias; for bitsandbytes' code · scale · (1 / 127). Each
operation is rounded by itself. Values too large for the dtype become inf and NaN stays NaN, as in torch, so that the
check for these finds them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from arrowquant_dist.kernels import interpreted
from arrowquant_dist.kernels.bits import float_to_bfloat16, float_to_float16, from_code, to_float32
from arrowquant_dist.kernels.code_kinds import AFFINE, E2M1, E4M3, E5M2, INT8_OF_127, PACKED
from arrowquant_dist.kernels.compile import instruction, kernel
from arrowquant_dist.kernels.pack import unpack_row

TILE_ROWS = 32  # rows of codes that are decoded before they are written as columns, a cache line at a time

_F32 = ir.FloatType()


@instruction(interpreted.rounded)
def _rounded(_typing: Any, _value: Any, like: Any) -> Any:
    """float32 → bits of the dtype that `like`'s integer type stands for. All NaN become the same bit pattern, because
    the one that an operation produces depends on the CPU."""

    def float32(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        is_nan = builder.fcmp_unordered("uno", args[0], args[0])
        nan = ir.Constant(ir.IntType(32), 0x7FC00000)
        return builder.select(is_nan, nan, builder.bitcast(args[0], ir.IntType(32)))

    def bfloat16(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        is_nan = builder.fcmp_unordered("uno", args[0], args[0])
        nan = ir.Constant(ir.IntType(16), 0x7FC0)
        return builder.select(is_nan, nan, float_to_bfloat16(builder, args[0]))

    def float16(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        value = args[0]
        finite = value
        for bound, comparison in ((65504.0, "<"), (-65504.0, ">")):
            constant = ir.Constant(_F32, bound)
            finite = builder.select(builder.fcmp_ordered(comparison, finite, constant), finite, constant)
        half = float_to_float16(context, builder, finite)
        size = builder.call(builder.module.declare_intrinsic("llvm.fabs", [_F32]), [value])
        too_large = builder.fcmp_ordered(">=", size, ir.Constant(_F32, 65520.0))
        upper = builder.lshr(builder.bitcast(value, ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        sign = builder.and_(builder.trunc(upper, ir.IntType(16)), ir.Constant(ir.IntType(16), 0x8000))
        half = builder.select(too_large, builder.or_(sign, ir.Constant(ir.IntType(16), 0x7C00)), half)
        is_nan = builder.fcmp_unordered("uno", value, value)
        return builder.select(is_nan, ir.Constant(ir.IntType(16), 0x7E00), half)

    codegens = {types.int32: float32, types.uint16: bfloat16, types.int16: float16}
    return like(types.float32, like), codegens[like]


@kernel
def _e4m3_run(codes: np.ndarray, scale: np.float32, out: np.ndarray) -> None:
    """float8_e4m3fn: shifted to the left, its bits are those of a float16, except for the exponent's bias and NaN."""
    for j in range(out.size):
        code = np.int32(codes[j])
        half = np.int16(((code & 0x80) << 8) | ((code & 0x7F) << 7))
        value = to_float32(half) * np.float32(256.0)
        if code & 0x7F == 0x7F:
            value = np.float32(np.nan)
        out[j] = _rounded(value * scale, out[j])


@kernel
def _e5m2_run(codes: np.ndarray, scale: np.float32, out: np.ndarray) -> None:
    """float8_e5m2: the upper half of a float16."""
    for j in range(out.size):
        out[j] = _rounded(to_float32(np.int16(np.int32(codes[j]) << 8)) * scale, out[j])


@kernel
def _e2m1_run(codes: np.ndarray, scale: np.float32, out: np.ndarray) -> None:
    """float4_e2m1 in the low four bits of each byte: shifted to the left, the bits of a float16 with another bias."""
    for j in range(out.size):
        code = np.int32(codes[j])
        half = np.int16(((code & 8) << 12) | ((code & 7) << 9))
        out[j] = _rounded(to_float32(half) * np.float32(16384.0) * scale, out[j])


@kernel
def _int_run(codes: np.ndarray, scale: np.float32, zero_point: np.float32, out: np.ndarray) -> None:
    for j in range(out.size):
        out[j] = _rounded((from_code(codes[j]) - zero_point) * scale, out[j])


@kernel
def _int_of_127_run(codes: np.ndarray, scale: np.float32, out: np.ndarray) -> None:
    """In bitsandbytes' order of operations."""
    for j in range(out.size):
        out[j] = _rounded(from_code(codes[j]) * scale * np.float32(1.0 / 127.0), out[j])


@kernel
def _affine_run(codes: np.ndarray, scale: np.float32, bias: np.float32, out: np.ndarray) -> None:
    """codes: unsigned."""
    for j in range(out.size):
        out[j] = _rounded(np.float32(codes[j]) * scale + bias, out[j])


@kernel
def _int_row_of_groups(
    codes: np.ndarray, groups: np.ndarray, scales: np.ndarray, zero_points: np.ndarray, out: np.ndarray
) -> None:
    """groups: int32 [columns], the group of each column (activation order)."""
    for j in range(out.size):
        group = groups[j]
        zero_point = zero_points[group] if zero_points.size else np.float32(0.0)
        out[j] = _rounded((from_code(codes[j]) - zero_point) * scales[group], out[j])


@kernel
def _unpack_nibbles(packed: np.ndarray, codes: np.ndarray) -> None:
    """codes: uint8 [n], filled with two codes from each byte, the low four bits first."""
    for j in range(codes.size >> 1):
        codes[2 * j] = packed[j] & np.uint8(15)
        codes[2 * j + 1] = packed[j] >> np.uint8(4)


@kernel
def _unpack(kind: int, bits: int, packed: np.ndarray, codes: np.ndarray) -> None:
    if kind == E2M1:
        _unpack_nibbles(packed, codes)
    elif bits == 8:
        for j in range(codes.size):
            codes[j] = packed[j] ^ np.uint8(128)
    else:
        unpack_row(packed, bits, codes)
    if kind == AFFINE:
        half = np.uint8(1 << (bits - 1))
        for j in range(codes.size):
            codes[j] = np.uint8(codes[j] + half)


@kernel
def _run(kind: int, codes: np.ndarray, scale: np.float32, zero_point: np.float32, out: np.ndarray) -> None:
    if kind == E4M3:
        _e4m3_run(codes, scale, out)
    elif kind == E5M2:
        _e5m2_run(codes, scale, out)
    elif kind == E2M1:
        _e2m1_run(codes, scale, out)
    elif kind == AFFINE:
        _affine_run(codes, scale, zero_point, out)
    elif kind == INT8_OF_127:
        _int_of_127_run(codes, scale, out)
    else:
        _int_run(codes, scale, zero_point, out)


@kernel
def _row(
    kind: int,
    codes: np.ndarray,
    group: int,
    groups: np.ndarray,
    scales: np.ndarray,
    zero_points: np.ndarray,
    out: np.ndarray,
) -> None:
    """Decodes one row of unpacked codes. scales: float32 [groups of the row]. zero_points: the same, or [0]."""
    if groups.size:
        _int_row_of_groups(codes, groups, scales, zero_points, out)
        return
    for k in range(scales.size):
        start = k * group
        stop = min(start + group, out.size)
        zero_point = zero_points[k] if zero_points.size else np.float32(0.0)
        _run(kind, codes[start:stop], scales[k], zero_point, out[start:stop])


@kernel
def decode_rows(
    kind: int,
    bits: int,
    codes: np.ndarray,
    scale_rows: np.ndarray,
    group: int,
    groups: np.ndarray,
    scales: np.ndarray,
    zero_points: np.ndarray,
    scratch: np.ndarray,
    out: np.ndarray,
) -> None:
    """Decodes rows of codes, each with its own scales or those of its block.

    kind: one of code_kinds.py. bits: bits of a PACKED or AFFINE code (1 to 8). codes: uint8 [rows, row bytes].
    scale_rows: int64 [rows], the row of `scales` and `zero_points` for each row. group: columns per scale. groups:
    int32 [columns], the scale of each column; [0] if groups are runs of columns. scales: float32 [scale rows, groups].
    zero_points: the same, or [scale rows, 0]. scratch: uint8 [columns]. out: bits [rows, columns], int32 (float32),
    uint16 (bfloat16) or int16 (float16).
    """
    packed = kind in (PACKED, AFFINE, E2M1)
    for i in range(out.shape[0]):
        if packed:
            _unpack(kind, bits, codes[i], scratch)
        at = scale_rows[i]
        plain = scratch if packed else codes[i]
        _row(kind, plain, group, groups, scales[at], zero_points[at], out[i])


@kernel
def turn_fields(words: np.ndarray, shifts: np.ndarray, mask: int, codes: np.ndarray) -> None:
    """Unpacks fields of words to codes and transposes them: columns of words become rows of codes.

    words: uint32 [rows, columns]. shifts: uint32 [fields per word], in the order of the codes. codes: uint8
    [columns · fields, rows], filled.
    """
    for w in range(words.shape[1]):
        for k in range(shifts.size):
            at = w * shifts.size + k
            for i in range(words.shape[0]):
                codes[at, i] = np.uint8((words[i, w] >> shifts[k]) & mask)


@kernel
def decode_columns(
    kind: int,
    codes: np.ndarray,
    group: int,
    scales: np.ndarray,
    scratch: np.ndarray,
    tile: np.ndarray,
    skipped: int,
    out: np.ndarray,
) -> None:
    """Decodes rows of codes into columns, for layers that are stored transposed.

    codes: uint8 [rows, row bytes]. scales: float32 [rows, groups]. scratch: uint8 [codes per row]. tile: scratch of the
    same type as `out`, [TILE_ROWS, codes per row or more]. skipped: number of codes at the beginning of a row that are
    left out. out: bits [codes, rows].
    """
    none = np.float32(0.0)
    for first in range(0, codes.shape[0], tile.shape[0]):
        rows = min(tile.shape[0], codes.shape[0] - first)
        for i in range(rows):
            _unpack(kind, 4, codes[first + i], scratch)
            for k in range(scales.shape[1]):
                start = k * group
                stop = min(start + group, scratch.size)
                _run(kind, scratch[start:stop], scales[first + i, k], none, tile[i, start:stop])
        for j in range(out.shape[0]):
            for i in range(rows):
                out[j, first + i] = tile[i, skipped + j]


@kernel
def decode_row_pairs(
    codes: np.ndarray, skipped: int, scales: np.ndarray, group: int, first: int, out: np.ndarray
) -> None:
    """Decodes e2m1 codes whose bytes hold two of a column: of an even row in the low four bits, and of the next row.

    codes: uint8 [byte rows, columns]. skipped: 1 if `out` begins with an odd row, else 0. scales: float32 [scale rows,
    columns], a row for each `group` rows. first: index in its group of the first row of `out`. out: bits
    [rows, columns].
    """
    for i in range(out.shape[0]):
        packed, scale = codes[(i + skipped) >> 1], scales[(i + first) // group]
        shift = np.int32(4 * ((i + skipped) & 1))
        for j in range(out.shape[1]):
            code = (np.int32(packed[j]) >> shift) & np.int32(15)
            half = np.int16(((code & 8) << 12) | ((code & 7) << 9))
            out[i, j] = _rounded(to_float32(half) * np.float32(16384.0) * scale[j], out[i, j])
