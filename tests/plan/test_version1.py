"""Targets with plans of version 1 are read: `version1.arrow` was written by the last commit that made such plans."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_dist.errors import ArrowQuantError, CorruptWeights
from arrowquant_dist.plan import PLAN_VERSION, RowBlock, differences, is_same_work, make_plan, plan_from_table
from arrowquant_dist.plan.differences import OTHER_CODE
from arrowquant_dist.target.plan_file import read_plan_file
from tests.plan.every_kind import CONFIG, ELSEWHERE, LAYERS, RUN, SOURCE
from tests.plan.plan_bytes import read_again

DATA = Path(__file__).with_name("version1.arrow").read_bytes()


def as_before(block: RowBlock) -> RowBlock:
    """Vectors of wider floats were planned as fp16."""
    is_vector = block.kept_reason == "1-D"
    return replace(block, spec=replace(block.spec, quant_type="fp16")) if is_vector else block


def test_a_plan_of_version_1_is_read_whole() -> None:
    plan = read_again(DATA)
    assert plan.version == 1
    assert plan.fingerprint == "xxh3_128:69a5a383c634298e12d57fe156f38fc3"
    now = make_plan(SOURCE, CONFIG, RUN)
    assert now.version == PLAN_VERSION != 1
    shards = tuple(replace(shard, blocks=tuple(map(as_before, shard.blocks))) for shard in now.shards)
    assert plan == replace(now, version=1, fingerprint=plan.fingerprint, code="", shards=shards)
    assert tuple({block.layer.name: block.layer for block in plan.blocks}.values()) == LAYERS


def test_of_the_same_source_and_config_only_the_code_differs() -> None:
    plan, now = read_again(DATA), make_plan(SOURCE, CONFIG, RUN)
    assert differences(plan, now) == [OTHER_CODE]
    assert is_same_work(plan, now)
    scales = replace(ELSEWHERE, scales=replace(ELSEWHERE.scales, offset=60_000))
    layers = [replace(x, encoding=scales) if x.encoding == ELSEWHERE else x for x in LAYERS]
    moved = make_plan(replace(SOURCE, layers=tuple(layers)), CONFIG, RUN)
    assert differences(plan, moved) == [OTHER_CODE, "layer changed: float8_elsewhere.weight"]
    assert not is_same_work(plan, moved)


@settings(max_examples=300)
@given(st.integers(0, len(DATA) - 1), st.integers(1, 255))
def test_a_flipped_byte_of_it_gives_the_same_plan_or_one_clear_error(place: int, mask: int) -> None:
    damaged = bytearray(DATA)
    damaged[place] ^= mask
    try:
        plan = read_again(bytes(damaged))
    except ArrowQuantError:
        return
    assert plan.shards == read_again(DATA).shards


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("scaled:", "scalld:"),
        ('"offset":510000', '"offset":510001'),
        (',"transposed":true', ""),
        ('"codes"', '"kodes"'),
        ("[128,128]", "[128]"),
        ("strided:[1, 50]", "strided:["),
    ],
)
def test_an_encoding_that_was_changed_is_refused_before_it_is_parsed(before: str, after: str) -> None:
    table = read_plan_file(DATA, "plan.arrow")
    texts = [text.replace(before, after) for text in table["encoding"].to_pylist()]
    index = table.schema.names.index("encoding")
    with pytest.raises(CorruptWeights, match="the plan's fingerprint is"):
        plan_from_table(table.set_column(index, "encoding", pa.array(texts)))
