"""Bytes that a plan stands for: what is stored, and the memory that a worker needs for it."""

from __future__ import annotations

from arrowquant_dist.config import QuantSpec, Transfer
from arrowquant_dist.plan.blocks import Plan, RowBlock
from arrowquant_dist.tensor import row_nbytes

_TRANSFER = Transfer()
SCALE_NBYTES = 4  # float32, a zero point as well

# The bound of a worker's memory, in multiples of its largest block's bytes: measured peaks, rounded up.
INTERPRETER_NBYTES = 300 << 20  # Python, numpy, pyarrow, numba with compiled kernels, an idle Ray worker
WRITER_COPIES = {"none": 3, "zstd": 4}  # the codes, and what Parquet's writer holds of them besides
RANGE_COPIES = 2  # of each range in flight: the pieces of the answer as they come, and these joined
UPLOADS = 3  # parts of an upload: one that fills, and those on their way


def scales_row_nbytes(spec: QuantSpec, columns: int) -> int:
    """Bytes of one row's `scales`; 0 where a row has none of its own (per tensor, kept)."""
    return SCALE_NBYTES * spec.groups_per_row(columns) if spec.is_quantized else 0


def expected_nbytes(block: RowBlock) -> int:
    """Bytes of data, scales and zero points of the block, before compression.

    Exact, but for a kept block planned as fp16 that holds a value fp16 can't: its source's bytes are stored.
    """
    spec, columns = block.spec, block.columns
    data = block.rows * row_nbytes(spec.quant_type, columns, block.layer.dtype)
    scales = block.rows * scales_row_nbytes(spec, columns)
    if spec.is_quantized and spec.quant_axis == -1:
        scales = SCALE_NBYTES
    return data + (scales if spec.symmetric else 2 * scales)


def worker_memory_nbytes(plan: Plan, transfer: Transfer = _TRANSFER) -> int:
    """Upper bound of one worker's memory: a function of its largest row block, not of the model.

    transfer: what requests over a network hold besides; counted for local files as well, which need none of it.
    """
    writer = WRITER_COPIES[plan.compression]

    def block_nbytes(block: RowBlock) -> int:
        return block.layer.encoding.cost.copies * block.source_nbytes + writer * expected_nbytes(block)

    requests = RANGE_COPIES * transfer.requests * transfer.range_bytes + UPLOADS * transfer.upload_bytes
    return INTERPRETER_NBYTES + requests + max(map(block_nbytes, plan.blocks), default=0)
