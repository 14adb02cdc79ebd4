"""Every value is in one row block, blocks fit, and shards are balanced and in the order of the source's bytes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings

from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.config import QuantizationConfig, RunConfig
from arrowquant_dist.encodings.strided import Strided
from arrowquant_dist.errors import InvalidCheckpoint, InvalidConfig
from arrowquant_dist.plan import make_plan
from tests.plan.plan_sources import CONFIGS, RUNS, checkpoint, checkpoints, of_layers, raw_layers

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
INT8, RUN = QuantizationConfig(), RunConfig()


@settings(deadline=None, max_examples=150)
@given(checkpoints(), CONFIGS, RUNS)
def test_every_value_of_every_layer_is_in_exactly_one_block_and_fits(
    source: Checkpoint, config: QuantizationConfig, run: RunConfig
) -> None:
    plan = make_plan(source, config, run)
    assert [shard.index for shard in plan.shards] == list(range(len(plan.shards)))
    ends: dict[str, int] = {}
    for block in plan.blocks:
        start, stop = block.value_range
        assert start == ends.get(block.layer.name, 0)
        ends[block.layer.name] = stop
        assert block.num_params == math.prod(block.shape) == stop - start
        assert block.source_nbytes <= run.block_bytes or block.rows == 1
        assert len(block.shape) == len(block.layer.shape) or block.spec.row_dims > 1
    assert ends == {layer.name: layer.num_params for layer in source.layers}


def test_blocks_of_a_layer_are_of_about_equal_size() -> None:
    plan = make_plan(checkpoint({"x": (1_000_001, 100)}), INT8, RunConfig(block_bytes=MIB))
    rows = [block.rows for block in plan.blocks]
    assert max(rows) - min(rows) <= 1
    assert len(rows) == -(-1_000_001 // (MIB // 400))


def test_one_dimension_is_cut_too() -> None:
    plan = make_plan(checkpoint({"x": (3_000_000_000,)}), INT8, RUN)
    assert all(block.source_nbytes <= RUN.block_bytes for block in plan.blocks)
    assert sum(block.rows for block in plan.blocks) == 3_000_000_000


def test_a_row_larger_than_block_bytes_is_a_block_and_a_note() -> None:
    plan = make_plan(checkpoint({"x": (3, 100_000)}), INT8, RunConfig(block_bytes=64 * KIB))
    assert [block.rows for block in plan.blocks] == [1, 1, 1]
    assert plan.notes[0].startswith("x: one row is larger than block_bytes")


def test_scales_never_outgrow_a_parquet_value() -> None:
    config = QuantizationConfig("int8", per_channel=False, group_size=1)
    plan = make_plan(checkpoint({"x": (1 << 20, 1 << 10)}, "float8_e5m2"), config, RunConfig(block_bytes=GIB))
    assert len(list(plan.blocks)) > 1
    assert all(4 * block.num_params < 2 * GIB for block in plan.blocks)


@pytest.mark.parametrize("shape", [(4, 1 << 31), (0, 1 << 31), (2, 1 << 31, 0)])
def test_a_dimension_beyond_int32_is_an_error_that_names_the_layer(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidCheckpoint, match=r"layer 'x'.*2147483648 does not fit V2's int32 shape"):
        make_plan(checkpoint({"x": shape}), INT8, RUN)


def test_a_row_beyond_a_parquet_value_is_an_error() -> None:
    with pytest.raises(InvalidConfig, match=r"layer 'x'.*a row of 1000000000 values is more than"):
        make_plan(checkpoint({"x": (2, 10**9)}), INT8, RUN)


def test_a_header_that_stands_for_endless_blocks_costs_no_memory() -> None:
    layer = replace(
        raw_layers([("x", (1, 1), "float32")])[0], shape=(1 << 40, 1 << 20), encoding=Strided((0, 0))
    )
    with pytest.raises(InvalidConfig, match=r"layer 'x'.*row blocks, at most 1000000 can be"):
        make_plan(of_layers([layer]), INT8, RUN)


@settings(deadline=None, max_examples=150)
@given(checkpoints(), CONFIGS, RUNS)
def test_shards_keep_the_order_of_the_sources_bytes_and_stay_below_shard_bytes(
    source: Checkpoint, config: QuantizationConfig, run: RunConfig
) -> None:
    plan = make_plan(source, config, run)
    places = [(block.layer.uri, block.layer.offset, block.row_start) for block in plan.blocks]
    assert places == sorted(places)
    for shard in plan.shards:
        assert shard.blocks
        per_tensor = any(b.spec.is_quantized and b.spec.quant_axis == -1 for b in shard.blocks)
        assert shard.source_nbytes <= run.shard_bytes or len(shard.blocks) == 1 or per_tensor


def test_shards_are_balanced() -> None:
    shapes = {f"layers.{i}.w": (1024, 1024 + 512 * (i % 3)) for i in range(300)}
    plan = make_plan(checkpoint(shapes), INT8, RUN)
    sizes = [shard.source_nbytes for shard in plan.shards]
    assert len(sizes) >= 32
    assert max(sizes) < 1.25 * sum(sizes) / len(sizes)


def test_the_last_shard_is_no_remnant() -> None:
    plan = make_plan(checkpoint({f"layers.{i}.w": (512, 512) for i in range(11)}), INT8, RUN)
    assert sorted(len(shard.blocks) for shard in plan.shards) == [5, 6]


def test_a_small_model_still_feeds_two_workers() -> None:
    shapes = {"embed": (30522, 384), **{f"layers.{i}.w": (1536, 384) for i in range(18)}}
    plan = make_plan(checkpoint(shapes), INT8, RUN)
    sizes = sorted(shard.source_nbytes for shard in plan.shards)
    assert len(sizes) >= 5
    assert sizes[-1] < 1.2 * sum(sizes[:-1])


def test_scraps_between_large_layers_are_no_shards_of_their_own() -> None:
    shapes = {"norm.a": (384,), "x": (10_000, 1000), "norm.b": (384,), "y": (10_000, 1000), "norm.c": (384,)}
    plan = make_plan(checkpoint(shapes), INT8, RUN)
    assert min(shard.source_nbytes for shard in plan.shards) > MIB


def test_a_layer_with_one_scale_stays_in_one_shard() -> None:
    config = QuantizationConfig(per_channel=False, group_size=0)
    run = RunConfig(block_bytes=MIB, shard_bytes=2 * MIB)
    plan = make_plan(checkpoint({"a": (512, 512), "x": (4096, 1024), "b": (512, 512)}), config, run)
    assert len({shard.index for shard in plan.shards for b in shard.blocks if b.layer.name == "x"}) == 1


def test_thousands_of_tiny_layers_are_spread_over_shards() -> None:
    plan = make_plan(checkpoint({f"norm.{i}": (8,) for i in range(10_000)}), INT8, RUN)
    assert max(len(shard.blocks) for shard in plan.shards) <= 2100
