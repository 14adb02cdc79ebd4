"""Decodes packed rows for BLAS one tile at a time, in memory that the next tile and the next product reuse.

A tile has a million values: smaller ones take longer because BLAS starts its threads more often, and larger ones leave
the caches between decoding and multiplication.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from arrowquant_dist.arena import aligned
from arrowquant_dist.modules.decoding import decode_into, spread_nbytes, unpack_into
from arrowquant_dist.modules.packed_rows import PackedRows
from arrowquant_dist.modules.scratch import borrowed
from arrowquant_dist.modules.threads import split_rows
from arrowquant_dist.tensor.source import kernel_bits

TILE_VALUES = 1 << 20

RowTile = tuple[slice, torch.Tensor]  # rows, and their values [rows, columns], valid until the next tile


def decoded_tiles(packed: PackedRows, dtype: torch.dtype) -> Iterator[RowTile]:
    """Yields tiles decoded by torch's own operations: rounded from float32 to `dtype`, in 16 bits clamped to be
    finite."""
    most = _tile_rows(packed)
    is_wide = dtype == torch.float32
    wide_nbytes = aligned(4 * most * packed.columns)
    own_nbytes = 0 if is_wide else dtype.itemsize * most * packed.columns
    # the values in their own dtype take the place of the spread codes
    rest_nbytes = max(spread_nbytes(packed, most), own_nbytes)
    with borrowed(wide_nbytes + rest_nbytes, packed.codes.device) as memory:
        for rows, part in _parts(packed, most):
            values = _matrix(memory, torch.float32, part)
            decode_into(values, part, memory[wide_nbytes:])
            if dtype.itemsize == 2:
                limit = torch.finfo(dtype).max
                values.clamp_(-limit, limit)
            yield rows, values if is_wide else _matrix(memory[wide_nbytes:], dtype, part).copy_(values)


def code_tiles(packed: PackedRows) -> Iterator[RowTile]:
    """Yields tiles of the signed codes as float32, without scales and zero points applied."""
    most = _tile_rows(packed)
    wide_nbytes = aligned(4 * most * packed.columns)
    with borrowed(wide_nbytes + spread_nbytes(packed, most), packed.codes.device) as memory:
        for rows, part in _parts(packed, most):
            values = _matrix(memory, torch.float32, part)
            unpack_into(values, part, memory[wide_nbytes:])
            yield rows, values


def tiles_by_kernel(packed: PackedRows, dtype: torch.dtype) -> Iterator[RowTile]:
    """Yields tiles as decoded_tiles does, bit for bit, but by a kernel, in half the time for codes of fewer than 8
    bits. dtype: float32, bfloat16 or float16. Only on the CPU."""
    most = _tile_rows(packed)
    with borrowed(dtype.itemsize * most * packed.columns, packed.codes.device) as memory:
        for rows, part in _parts(packed, most):
            values = _matrix(memory, dtype, part)
            bits = kernel_bits(memory[: values.nbytes].numpy(), str(dtype).removeprefix("torch."))
            _decode_by_kernel(part, bits.reshape(values.shape))
            yield rows, values


def _decode_by_kernel(packed: PackedRows, out: np.ndarray) -> None:
    from arrowquant_dist.kernels.decode import dequantize_rows

    codes, scales, zero_points = packed.arrays()

    def decode(start: int, stop: int) -> None:
        part = slice(start, stop)
        dequantize_rows(
            codes[part],
            packed.bits,
            packed.group_size,
            scales[part],
            zero_points[part],
            0,
            np.empty(packed.columns + 8, np.uint8),
            out[part],
        )

    split_rows(decode, len(packed), torch.get_num_threads(), 1)


def _tile_rows(packed: PackedRows) -> int:
    return max(1, min(len(packed), TILE_VALUES // max(1, packed.columns)))


def _parts(packed: PackedRows, most: int) -> Iterator[tuple[slice, PackedRows]]:
    for start in range(0, len(packed), most):
        stop = min(start + most, len(packed))
        yield slice(start, stop), packed.part(start, stop)


def _matrix(memory: torch.Tensor, dtype: torch.dtype, part: PackedRows) -> torch.Tensor:
    """Returns the first bytes of `memory` as the matrix of all values of `part`."""
    count = len(part) * part.columns
    return memory[: count * dtype.itemsize].view(dtype).view(len(part), part.columns)
