"""Stored sizes of a plan's row blocks, in bytes."""

from __future__ import annotations

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.plan.blocks import RowBlock
from arrowquant_dist.tensor import row_nbytes

SCALE_NBYTES = 4  # float32; the same for a zero point


def scales_row_nbytes(spec: QuantSpec, columns: int) -> int:
    """Bytes of one row's `scales`; 0 if a row has none of its own (per tensor, kept)."""
    return SCALE_NBYTES * spec.groups_per_row(columns) if spec.is_quantized else 0


def expected_nbytes(block: RowBlock) -> int:
    """Bytes of data, scales and zero points of the block, before compression.

    Exact, except for a kept block planned as fp16 that contains a value fp16 can't hold: its source bytes are stored
    then.
    """
    spec, columns = block.spec, block.columns
    data = block.rows * row_nbytes(spec.quant_type, columns, block.layer.dtype)
    scales = block.rows * scales_row_nbytes(spec, columns)
    if spec.is_quantized and spec.quant_axis == -1:
        scales = SCALE_NBYTES
    return data + (scales if spec.symmetric else 2 * scales)
