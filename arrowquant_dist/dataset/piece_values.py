"""The values of a piece: what is read for them, and the tensor that they make up."""

from __future__ import annotations

from arrowquant_dist.dataset.pieces import Piece
from arrowquant_dist.dataset.ranges import widened
from arrowquant_dist.dataset.values import Values
from arrowquant_dist.storage.base import ByteRange
from arrowquant_dist.tensor import QuantizedTensor


def read_range(piece: Piece, *, verify: bool) -> ByteRange:
    """The bytes to read of the data of a piece's block, as in `widened`."""
    block = piece.block
    if block.ranges is not None and piece.is_whole:
        return ByteRange(0, block.ranges.data.nbytes)
    return widened(block.header, piece.start, piece.stop, verify=verify)


def piece_tensor(values: Values, piece: Piece) -> QuantizedTensor:
    """The piece as a tensor. values: what was read for it, or all values of its block."""
    row, blobs, start, stop = piece.block.header, values.blobs, piece.start, piece.stop
    shape, codes, scales, zero_points = row.shape, blobs.data, blobs.scales, blobs.zero_points
    if not piece.is_whole:
        shape = (stop - start, *row.layer_shape[row.row_dims :])
        width, groups = row.row_nbytes, row.groups_per_row
        codes = codes[start * width - values.start : stop * width - values.start]
        if groups:
            scales, zero_points = (
                numbers[start * groups : stop * groups] for numbers in (scales, zero_points)
            )
    row_dims = row.own_row_dims if piece.is_whole else 1
    return QuantizedTensor(
        shape, row.dtype, row.quant_type, codes, scales, zero_points, row.quant_axis, row.group_size, row_dims
    )
