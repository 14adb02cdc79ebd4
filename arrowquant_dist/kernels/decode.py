"""Codes → values: x̂ = (q - zero_point) · scale in IEEE float32, then rounded to the requested dtype."""

from __future__ import annotations

import numpy as np

from arrowquant_dist.kernels.bits import from_code, to_bits
from arrowquant_dist.kernels.compile import kernel
from arrowquant_dist.kernels.memory import copy_bytes
from arrowquant_dist.kernels.pack import unpack_row


@kernel
def _decode_symmetric_run(codes: np.ndarray, scale: np.float32, out: np.ndarray) -> None:
    for j in range(codes.size):
        out[j] = to_bits(from_code(codes[j]) * scale, out[j])


@kernel
def _decode_run(codes: np.ndarray, scale: np.float32, zero_point: np.float32, out: np.ndarray) -> None:
    for j in range(codes.size):
        out[j] = to_bits((from_code(codes[j]) - zero_point) * scale, out[j])


@kernel
def dequantize_rows(
    codes: np.ndarray,
    width: int,
    group: int,
    scales: np.ndarray,
    zero_points: np.ndarray,
    first: int,
    scratch: np.ndarray,
    out: np.ndarray,
) -> None:
    """Decodes packed rows: of each row the columns from `first` on, as many as `out` has.

    codes: uint8 [rows, row bytes]. width: bits per code. group: values per scale. scales: float32 [rows, groups].
    zero_points: the same, or [rows, 0] if symmetric. scratch: uint8 [columns of out + 8]. out: bits [rows, columns],
    int32 (float32), uint16 (bfloat16) or int16 (float16); a value beyond the dtype's range becomes its largest finite
    one.
    """
    for i in range(out.shape[0]):
        _decode_row(codes[i], width, group, scales[i], zero_points[i], first, scratch, out[i])


@kernel
def _decode_row(
    codes: np.ndarray,
    width: int,
    group: int,
    scales: np.ndarray,
    zero_points: np.ndarray,
    first: int,
    scratch: np.ndarray,
    out: np.ndarray,
) -> None:
    columns = out.size
    begin = first & ~7  # eight codes end on a byte, whatever their width
    skipped = first - begin
    if width != 8:
        unpack_row(codes[begin * width // 8 :], width, scratch[: skipped + columns])
    plain = codes[first:] if width == 8 else scratch[skipped:]
    start = 0
    k = first // group
    while start < columns:
        stop = min((k + 1) * group - first, columns)
        if zero_points.size == 0:
            _decode_symmetric_run(plain[start:stop], scales[k], out[start:stop])
        else:
            _decode_run(plain[start:stop], scales[k], zero_points[k], out[start:stop])
        start = stop
        k += 1


# The columns of the table of `decode_blocks`: for each block bits per code, rows, columns, groups per row, and values
# per scale.
WIDTH, ROWS, COLUMNS, GROUPS, GROUP = range(5)
MOST_BLOCKS = 8


@kernel
def decode_blocks(
    codes: tuple[np.ndarray, ...],
    scales: tuple[np.ndarray, ...],
    zero_points: tuple[np.ndarray, ...],
    table: np.ndarray,
    outs: tuple[np.ndarray, ...],
    numbers: np.ndarray,
    number_bytes: np.ndarray,
    scratch: np.ndarray,
) -> int:
    """Decodes several whole blocks, each like `dequantize_rows`.

    codes, scales, zero_points: MOST_BLOCKS arrays each, the stored bytes of each block, uint8, aligned or not; zero
    points are empty if a block is symmetric, and arrays beyond the number of blocks are ignored. table: int64
    [blocks, 5], with the columns above. outs: MOST_BLOCKS arrays of bits as in `dequantize_rows`, [rows · columns].
    numbers: scratch, float32 [2 · rows · groups per row] of the largest block. number_bytes: the same memory as uint8.
    scratch: uint8 [columns + 8] of the widest block.
    Returns the index of the first block with a scale or zero point that is not finite, from which on no block is
    decoded; -1 if there is none.
    """
    for b in range(table.shape[0]):
        columns, groups = table[b, COLUMNS], table[b, GROUPS]
        count = table[b, ROWS] * groups
        is_symmetric = zero_points[b].size == 0
        copy_bytes(scales[b], 0, 4 * count, number_bytes, 0)
        if not is_symmetric:
            copy_bytes(zero_points[b], 0, 4 * count, number_bytes, 4 * count)
        for i in range(count if is_symmetric else 2 * count):
            if not np.isfinite(numbers[i]):
                return b
        width = (columns * table[b, WIDTH] + 7) // 8
        stored, out = codes[b], outs[b]
        for i in range(table[b, ROWS]):
            zeros = count + i * groups
            _decode_row(
                stored[i * width : (i + 1) * width],
                table[b, WIDTH],
                table[b, GROUP],
                numbers[i * groups : (i + 1) * groups],
                numbers[zeros : zeros if is_symmetric else zeros + groups],
                0,
                scratch,
                out[i * columns : (i + 1) * columns],
            )
    return -1
