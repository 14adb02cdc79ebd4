"""Every value is in one row block, blocks fit, and shards are balanced and in the order of the source's bytes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_dist.checkpoint.table import Checkpoint, Layer
from arrowquant_dist.config import QuantizationConfig, RunConfig
from arrowquant_dist.encodings.strided import Strided
from arrowquant_dist.errors import InvalidCheckpoint, InvalidConfig
from arrowquant_dist.plan import make_plan
from arrowquant_dist.tensor import row_nbytes
from tests.plan.plan_sources import CONFIGS, RUNS, checkpoint, checkpoints, of_layers, raw_layers

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
INT8, RUN = QuantizationConfig(), RunConfig()


@settings(max_examples=150)
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
    with pytest.raises(InvalidConfig, match=r"layer 'x'.*row blocks, more than the 1000000 allowed"):
        make_plan(of_layers([layer]), INT8, RUN)


@settings(max_examples=150)
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


def _edges_of_torch(layer: Layer, ranks: int, row_dims: int) -> set[int]:
    """Rows where torch.tensor_split cuts the first dimension."""
    ends = np.cumsum([len(part) for part in torch.tensor_split(torch.arange(layer.shape[0]), ranks)])
    return {int(end) * math.prod(layer.shape[1:row_dims]) for end in ends}


@settings(max_examples=100)
@given(checkpoints(), CONFIGS, RUNS, st.sampled_from([2, 3, 6, 8, 12]))
def test_blocks_end_where_the_parts_of_every_number_of_ranks_that_divides_the_degree_do(
    source: Checkpoint, config: QuantizationConfig, run: RunConfig, degree: int
) -> None:
    plan = make_plan(source, config, run.replace(tensor_parallel=degree))
    ends: dict[str, list[int]] = {}
    nbytes: dict[str, int] = {}
    for block in plan.blocks:
        assert block.row_start == ends.setdefault(block.layer.name, [0])[-1]
        ends[block.layer.name].append(block.row_start + block.rows)
        assert block.source_nbytes <= run.block_bytes or block.rows == 1
        scales = 4 * block.rows * block.spec.groups_per_row(block.columns) if block.spec.is_quantized else 0
        stored = block.rows * row_nbytes(block.spec.quant_type, block.columns, block.layer.dtype)
        nbytes[block.layer.name] = nbytes.get(block.layer.name, 0) + stored + scales
    for block in plan.blocks:
        layer = block.layer
        assert ends[layer.name][-1] * block.columns == layer.num_params
        for ranks in range(2, degree + 1):
            if degree % ranks == 0 and len(layer.shape) > 1 and nbytes[layer.name] >= ranks * 8 * KIB:
                assert _edges_of_torch(layer, ranks, block.spec.row_dims) <= set(ends[layer.name])


@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        ((1024, 64), [128] * 8),
        # Of 8, 4 and 2 ranks, whose edges lie beside each other.
        ((1027, 64), [129, 128, 1, 129, 127, 1, 128, 128, 128, 128]),
        ((256, 64), [128, 128]),  # 16 KiB and scales: two ranks' parts are worth a row each
        ((64, 64), [64]),
        ((1 << 20,), [1 << 20]),
    ],
)
def test_layers_are_cut_as_far_as_a_rank_has_8_kib_of_them(shape: tuple[int, ...], rows: list[int]) -> None:
    plan = make_plan(checkpoint({"x": shape}), INT8, RunConfig(tensor_parallel=8))
    assert sum(rows) == shape[0]
    assert [block.rows for block in plan.blocks] == rows


def test_ranks_get_whole_experts() -> None:
    config = QuantizationConfig(row_dims={"experts": 2})
    plan = make_plan(checkpoint({"experts": (6, 64, 128)}), config, RunConfig(tensor_parallel=4))
    assert [block.rows // 64 for block in plan.blocks] == [2, 1, 1, 1, 1]  # 2 2 1 1 of four ranks, 3 3 of two


def test_a_part_of_a_rank_is_cut_on_into_blocks() -> None:
    run = RunConfig(tensor_parallel=2, block_bytes=64 * KIB)
    plan = make_plan(checkpoint({"x": (600, 100)}), INT8, run)
    assert [block.rows for block in plan.blocks] == [150, 150, 150, 150]


def test_one_scale_for_the_tensor_keeps_ranks_parts_in_one_shard() -> None:
    config = QuantizationConfig(per_channel=False, group_size=0)
    run = RunConfig(tensor_parallel=8, shard_bytes=MIB)
    plan = make_plan(checkpoint({"a": (512, 512), "x": (4096, 1024), "b": (512, 512)}), config, run)
    blocks = [(shard.index, b.rows) for shard in plan.shards for b in shard.blocks if b.layer.name == "x"]
    assert [rows for _, rows in blocks] == [512] * 8
    assert len({shard for shard, _ in blocks}) == 1
