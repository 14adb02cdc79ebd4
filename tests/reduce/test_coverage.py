"""Receipts that do not cover the plan, or cover something twice, make no report."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arrowquant_dist.errors import IncompleteDataset
from arrowquant_dist.target.receipt import Receipt
from tests.reduce.made import EMBED, RUN, made, plan_of, receipts_of, reduce_receipts


def test_missing_shards_are_named_and_counted() -> None:
    pieces = tuple(((made(f"layer{i}", (2, 2)), 0, 2),) for i in range(9))
    with pytest.raises(IncompleteDataset, match=r"7 of 9 shards are missing \(2, 3, 4, 5, 6 and 2 more\)"):
        reduce_receipts(receipts_of(pieces)[:2], plan_of(pieces), RUN)


def test_a_shard_told_twice_is_refused() -> None:
    receipts = receipts_of()
    with pytest.raises(IncompleteDataset, match=r"surplus receipt \(1\)"):
        reduce_receipts([*receipts, receipts[1]], plan_of(), RUN)


def without(receipts: list[Receipt], shard: int, row: int) -> list[Receipt]:
    rows = receipts[shard].rows
    return [
        *receipts[:shard],
        replace(receipts[shard], rows=rows[:row] + rows[row + 1 :]),
        *receipts[shard + 1 :],
    ]


@pytest.mark.parametrize(
    ("shard", "row", "message"),
    [
        (0, 1, r"1 of 5 layers is missing \('layers.0.self_attn.q_proj.weight'\)"),
        (0, 0, r"layer 'embed_tokens.weight': rows 0 to 10 of 30 are missing"),
        (1, 0, r"layer 'embed_tokens.weight': has only rows up to 10 of 30"),
    ],
)
def test_rows_that_do_not_cover_the_plan_are_refused(shard: int, row: int, message: str) -> None:
    with pytest.raises(IncompleteDataset, match=message):
        reduce_receipts(without(receipts_of(), shard, row), plan_of(), RUN)


def test_overlapping_rows_are_refused() -> None:
    receipts = receipts_of()
    rows = (EMBED.record(8, 30), *receipts[1].rows[1:])
    receipts[1] = replace(receipts[1], rows=rows)
    with pytest.raises(IncompleteDataset, match="rows 8 to 10 of 30 appear twice"):
        reduce_receipts(receipts, plan_of(), RUN)


def test_rows_of_another_plan_are_refused() -> None:
    receipts = receipts_of()
    receipts[0] = replace(receipts[0], rows=(*receipts[0].rows, made("stranger", (2, 2)).record(0, 2)))
    with pytest.raises(IncompleteDataset, match="not in the plan"):
        reduce_receipts(receipts, plan_of(), RUN)
