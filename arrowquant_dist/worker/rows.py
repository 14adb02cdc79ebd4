"""Makes the V2 row of a quantized row block."""

from __future__ import annotations

import numpy as np

from arrowquant_dist.format.digests import chunk_digests, row_checksum
from arrowquant_dist.format.row import Blobs, RowHeader, StoredRow
from arrowquant_dist.plan import RowBlock
from arrowquant_dist.tensor import QuantizedTensor


def stored_row(block: RowBlock, quantized: QuantizedTensor) -> StoredRow:
    """The V2 row with its digests. Shares the arrays of `quantized`."""
    digests = chunk_digests(quantized.codes)
    header = RowHeader(
        layer_name=block.layer.name,
        row_start=block.row_start,
        shape=quantized.shape,
        layer_shape=block.layer.shape,
        row_dims=block.spec.row_dims,
        dtype=quantized.dtype,
        quant_type=quantized.quant_type,
        quant_axis=quantized.quant_axis,
        group_size=quantized.group_size,
        num_params=block.num_params,
        checksum=row_checksum(digests, quantized.scales, quantized.zero_points),
    )
    blobs = Blobs(
        data=quantized.codes,
        scales=quantized.scales,
        zero_points=quantized.zero_points,
        chunk_digests=np.frombuffer(digests, np.uint8),
    )
    return StoredRow(header, blobs)


def recorded_method(block: RowBlock, quantized: QuantizedTensor) -> str:
    """The method that chose the scales; `none` if there are no scales, whatever was planned."""
    return block.spec.method if quantized.scales.size else "none"


def kept_reason_of(block: RowBlock, quantized: QuantizedTensor) -> str | None:
    """Why the block is not quantized: the plan's reason, or what its values contain; None if it is quantized."""
    if block.spec.is_quantized and not quantized.scales.size and block.num_params:
        return "holds NaN or inf (non_finite: keep)"
    return block.kept_reason
