"""What a worker reads together: the batches of a shard's row blocks, and how many of them are there at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from arrowquant_dist.plan.blocks import RowBlock

MIN_BATCH_NBYTES = 16 << 20  # neighbouring small blocks are read together up to this much

Batch = list[RowBlock]


def batches_of(blocks: Sequence[RowBlock]) -> list[Batch]:
    """Runs of neighbours to read together: up to the bytes of the largest block, or MIN_BATCH_NBYTES."""
    limit = max([MIN_BATCH_NBYTES, *(block.source_nbytes for block in blocks)])
    batches: list[Batch] = []
    nbytes = 0
    for block in blocks:
        if not batches or nbytes + block.source_nbytes > limit:  # a first block may have no bytes at all
            batches.append([])
            nbytes = 0
        batches[-1].append(block)
        nbytes += block.source_nbytes
    return batches


def read_ahead(blocks: Iterable[RowBlock]) -> int:
    """How many batches are read over a network while one of them is worked on: what all of the blocks' layers allow."""
    return min((block.layer.encoding.batches_ahead for block in blocks), default=1)
