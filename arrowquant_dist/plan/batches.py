"""Batches: row blocks of a shard that a worker reads together, and how many batches it holds at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from arrowquant_dist.plan.blocks import RowBlock

MIN_BATCH_NBYTES = 16 << 20  # neighbouring small blocks are read together up to this much

Batch = list[RowBlock]


def batches_of(blocks: Sequence[RowBlock]) -> list[Batch]:
    """Groups neighbouring blocks that are read together, up to the size of the largest block or MIN_BATCH_NBYTES."""
    limit = max([MIN_BATCH_NBYTES, *(block.source_nbytes for block in blocks)])
    batches: list[Batch] = []
    nbytes = 0
    for block in blocks:
        if not batches or nbytes + block.source_nbytes > limit:  # `not batches`: a first block may be empty
            batches.append([])
            nbytes = 0
        batches[-1].append(block)
        nbytes += block.source_nbytes
    return batches


def read_ahead(blocks: Iterable[RowBlock]) -> int:
    """The number of batches read ahead over a network while one is processed: the minimum over the encodings."""
    return min((block.layer.encoding.batches_ahead for block in blocks), default=1)
