"""Blocks that are read together: all of them once, in order, within the limit, even if they have no bytes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.plan import RowBlock
from arrowquant_dist.plan.batches import MIN_BATCH_NBYTES, batches_of
from tests.plan.plan_sources import raw_layers

MIB = 1 << 20
KEPT = QuantSpec("none", per_channel=False, group_size=0, method="none")


def blocks_of(sizes: Sequence[int]) -> list[RowBlock]:
    """A whole layer of so many bytes each."""
    layers = raw_layers((f"layer{index}", (nbytes,), "int8") for index, nbytes in enumerate(sizes))
    return [RowBlock(layer, KEPT, 0, layer.shape[0]) for layer in layers]


@given(st.lists(st.sampled_from([0, 1, MIB, 9 * MIB, MIN_BATCH_NBYTES, 40 * MIB]), max_size=12))
def test_every_block_is_in_one_batch_and_batches_stay_within_the_largest(sizes: list[int]) -> None:
    blocks = blocks_of(sizes)
    batches = batches_of(blocks)
    assert [block for batch in batches for block in batch] == blocks
    assert all(batches)
    limit = max([MIN_BATCH_NBYTES, *sizes])
    assert all(sum(block.source_nbytes for block in batch) <= limit for batch in batches)


@pytest.mark.parametrize("sizes", [[0], [0, 0, 0], [0, 5], [0, 40 * MIB]])
def test_blocks_without_bytes_may_come_first(sizes: list[int]) -> None:
    assert [len(batch) for batch in batches_of(blocks_of(sizes))] == [len(sizes)]
