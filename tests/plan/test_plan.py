"""Plans: what is quantized how, in which row blocks and shards, and what makes two plans the same."""

from __future__ import annotations

import math
import random
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_dist.checkpoint.encodings.strided import Strided
from arrowquant_dist.checkpoint.table import Checkpoint, SourceFile
from arrowquant_dist.config import LayerOverride, QuantizationConfig, RunConfig
from arrowquant_dist.errors import InvalidCheckpoint, InvalidConfig
from arrowquant_dist.plan import (
    Plan,
    differences,
    expected_nbytes,
    is_same_work,
    make_plan,
    summarize,
)
from arrowquant_dist.plan.differences import OTHER_CODE
from arrowquant_dist.plan.fingerprint import fingerprint
from tests.plan.plan_bytes import read_again, written
from tests.plan.plan_sources import (
    CONFIGS,
    RUNS,
    checkpoint,
    checkpoints,
    of_layers,
    raw_layers,
)

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
INT8, RUN = QuantizationConfig(), RunConfig()
GROUPS = QuantizationConfig("int4", per_channel=False)


def reasons(plan: Plan) -> dict[str, str | None]:
    return {block.layer.name: block.kept_reason for block in plan.blocks}


def specs(plan: Plan) -> dict[str, str]:
    return {block.layer.name: block.spec.quant_type for block in plan.blocks}


# -- what is quantized, and why not ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dtype", "reason", "stored"),
    [
        ((), "float32", "0-D", "fp16"),
        ((5,), "float64", "1-D", "fp16"),
        ((5,), "bfloat16", "1-D", "none"),
        ((5,), "float16", "1-D", "none"),
        ((4, 5), "int64", "integer dtype int64", "none"),
        ((4, 5), "bool", "bool", "none"),
        ((4, 0), "float32", "empty", "fp16"),
        ((4, 5), "float8_e4m3fn", None, "int8"),
        ((4, 5), "bfloat16", None, "int8"),
        ((4, 5, 3, 3), "float64", None, "int8"),
    ],
)
def test_what_has_no_rows_of_floats_is_kept_and_says_why(
    shape: tuple[int, ...], dtype: str, reason: str | None, stored: str
) -> None:
    plan = make_plan(checkpoint({"x": shape}, dtype), INT8, RUN)
    assert (reasons(plan)["x"], specs(plan)["x"]) == (reason, stored)


def test_mixed_precision_layers_are_kept_and_a_word_without_a_match_is_a_note() -> None:
    config = QuantizationConfig(mixed_precision_layers=["embed", "lm_head"])
    plan = make_plan(checkpoint({"model.embed.weight": (4, 4), "a": (4, 4)}), config, RUN)
    assert reasons(plan) == {"model.embed.weight": "mixed_precision_layers: embed", "a": None}
    assert plan.notes == ("mixed_precision_layers: 'lm_head' matches no layer",)


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("down", {"a.down.w", "b.Xdown.w"}),
        ("a.*", {"a.down.w", "a.up.w"}),
        ("?.up.[vw]", {"a.up.w"}),
        ("/^a.*w$/", {"a.down.w", "a.up.w"}),
        ("/own/", {"a.down.w", "b.Xdown.w"}),
        ("*Down*", set()),
    ],
)
def test_a_word_is_a_part_of_a_name_a_glob_all_of_it_and_a_regex_is_searched(
    pattern: str, matched: set[str]
) -> None:
    plan = make_plan(
        checkpoint(dict.fromkeys(["a.down.w", "a.up.w", "b.Xdown.w"], (4, 4))),
        QuantizationConfig(mixed_precision_layers=[pattern]),
        RUN,
    )
    assert {name for name, reason in reasons(plan).items() if reason} == matched


def test_the_last_matching_override_wins_as_a_whole() -> None:
    config = QuantizationConfig(
        "int8",
        overrides=[LayerOverride("*.w", "int2", group_size=32), LayerOverride("b*", symmetric=False)],
    )
    plan = make_plan(checkpoint({"a.w": (4, 4), "b.w": (4, 4)}), config, RUN)
    by_name = {block.layer.name: block.spec for block in plan.blocks}
    assert (by_name["a.w"].quant_type, by_name["a.w"].group_size, by_name["a.w"].method) == (
        "int2",
        32,
        "mse",
    )
    assert (by_name["b.w"].quant_type, by_name["b.w"].symmetric, by_name["b.w"].per_channel) == (
        "int8",
        False,
        True,
    )


def test_an_override_with_a_quant_type_wins_over_mixed_precision_layers_and_one_without_does_not() -> None:
    layers = checkpoint({"embed.a": (4, 4), "embed.b": (4, 4), "c": (4, 4)})
    config = QuantizationConfig(
        mixed_precision_layers=["embed"],
        overrides=[
            LayerOverride("embed.a", "int4"),
            LayerOverride("embed.b", group_size=64),
            LayerOverride("c", "fp16"),
        ],
    )
    plan = make_plan(layers, config, RUN)
    assert specs(plan) == {"embed.a": "int4", "embed.b": "fp16", "c": "fp16"}
    assert reasons(plan)["c"] == "override: c"
    assert any("overrides[1] ('embed.b') has no effect" in note for note in plan.notes)


def test_fp16_keeps_all_but_what_an_override_quantizes() -> None:
    config = QuantizationConfig("fp16", overrides=[LayerOverride("b", "int8")])
    plan = make_plan(checkpoint({"a": (4, 4), "b": (4, 4)}), config, RUN)
    assert reasons(plan) == {"a": "quant_type fp16", "b": None}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            LayerOverride("*.donw_proj.weight", "int4"),
            r"overrides\[0\].layers: .* matches no layer; the nearest names are model.layers.0.down_proj.weight",
        ),
        (
            LayerOverride("zzz", "int4"),
            r"matches no layer; the first layers are model.layers.0.down_proj.weight",
        ),
        (LayerOverride("*.bias", "int4"), r"can't be quantized, such as model.layers.0.bias \(1-D\)"),
        (LayerOverride("*.bias", group_size=32), r"can't be quantized, .*quant_type: fp16"),
        (LayerOverride("*down*", row_dims=2), r"overrides\[0\].row_dims: 2 leaves no columns"),
    ],
)
def test_an_override_that_is_good_for_nothing_is_an_error(override: LayerOverride, message: str) -> None:
    names = {f"model.layers.{i}.down_proj.weight": (4, 4) for i in range(3)}
    source = checkpoint({**names, "model.layers.0.bias": (4,)})
    with pytest.raises(InvalidConfig, match=message):
        make_plan(source, QuantizationConfig(overrides=[override]), RUN)


def test_an_override_may_keep_layers_that_would_be_kept_anyway() -> None:
    make_plan(
        checkpoint({"a.bias": (4,)}), QuantizationConfig(overrides=[LayerOverride("*.bias", "fp16")]), RUN
    )


def test_an_override_that_later_ones_hide_is_noted() -> None:
    config = QuantizationConfig(overrides=[LayerOverride("a", "int4"), LayerOverride("*", "int2")])
    assert any(
        "overrides[0] ('a') has no effect" in n
        for n in make_plan(checkpoint({"a": (4, 4)}), config, RUN).notes
    )


def test_fused_experts_have_a_row_for_each_output_of_each_expert() -> None:
    shapes = {
        "mlp.experts.w1": (8, 30, 20),
        "mlp.experts.bias": (8, 30),
        "conv": (8, 30, 20),
        "stack": (8, 30, 20),
    }
    config = QuantizationConfig(row_dims={"stack": 2})
    rows = {b.layer.name: (b.rows, b.columns) for b in make_plan(checkpoint(shapes), config, RUN).blocks}
    assert rows == {
        "mlp.experts.w1": (240, 20),
        "mlp.experts.bias": (8, 30),
        "conv": (8, 600),
        "stack": (240, 20),
    }


def test_row_dims_of_an_override_win_over_those_of_the_config() -> None:
    config = QuantizationConfig(row_dims={"x": 2}, overrides=[LayerOverride("xy", row_dims=1)])
    plan = make_plan(checkpoint({"xy": (2, 3, 4), "xz": (2, 3, 4)}), config, RUN)
    assert [block.spec.row_dims for block in plan.blocks] == [1, 2]


def test_row_dims_without_a_layer_that_has_them_are_an_error() -> None:
    with pytest.raises(InvalidConfig, match=r"row_dims\['a'\]: matches no layer with more than 2 dimensions"):
        make_plan(checkpoint({"a": (4, 4)}), QuantizationConfig(row_dims={"a": 2}), RUN)


def test_what_looks_like_unknown_fused_experts_is_noted() -> None:
    plan = make_plan(checkpoint({"moe.input_linear": (8, 256, 128), "conv": (8, 256, 3)}), INT8, RUN)
    assert [note.partition(":")[0] for note in plan.notes] == ["moe.input_linear"]


# -- row blocks --------------------------------------------------------------------------------------------------


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


# -- shards ------------------------------------------------------------------------------------------------------


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


# -- the same plan, another plan ---------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(checkpoints(), CONFIGS, RUNS, st.randoms(use_true_random=False))
def test_a_plan_depends_on_neither_engine_nor_workers_nor_the_order_of_raw_layers(
    source: Checkpoint, config: QuantizationConfig, run: RunConfig, order: random.Random
) -> None:
    layers = [layer for layer in source.layers if layer.num_params]  # empty ones share an offset
    source = replace(source, layers=tuple(layers), aliases={})
    if not layers:
        return
    order.shuffle(layers)
    other = replace(run, engine="ray", address="ray://head:10001", workers=7, storage_options={"key": "k"})
    shuffled = make_plan(replace(source, layers=tuple(layers)), config, other)
    plan = make_plan(source, config, run)
    assert plan == shuffled
    assert differences(plan, shuffled) == []


BASE = checkpoint({"a": (2000, 300), "b": (2000, 300), "c": (8,)}, aliases={"tied": "a"})


def _touched(file: SourceFile) -> SourceFile:
    return replace(file, version="v2")


@pytest.mark.parametrize(
    ("source", "config", "run", "line"),
    [
        (BASE, INT8.replace(quant_type="int4"), RUN, "quant_type: was 'int8', is 'int4'"),
        (BASE, INT8, RunConfig(compression="none"), "run.compression: was 'zstd', is 'none'"),
        (BASE, INT8, RunConfig(block_bytes=MIB), f"run.block_bytes: was {64 * MIB}, is {MIB}"),
        (BASE, INT8, RunConfig(shard_bytes=MIB), f"run.shard_bytes: was {512 * MIB}, is {MIB}"),
        (
            replace(BASE, files=tuple(map(_touched, BASE.files))),
            INT8,
            RUN,
            f"source file changed: {BASE.files[0].uri}",
        ),
        (replace(BASE, aliases={}), INT8, RUN, "alias gone: tied"),
        (checkpoint({"a": (2000, 300), "b": (2000, 300)}, aliases={"tied": "a"}), INT8, RUN, "layer gone: c"),
        (checkpoint({"a": (300, 2000), "b": (2000, 300), "c": (8,), "d": ()}), INT8, RUN, "layer changed: a"),
    ],
)
def test_another_source_or_config_is_another_plan_and_says_what_changed(
    source: Checkpoint, config: QuantizationConfig, run: RunConfig, line: str
) -> None:
    before, now = make_plan(BASE, INT8, RUN), make_plan(source, config, run)
    assert before.fingerprint != now.fingerprint
    assert line in differences(before, now)


def test_settings_that_change_no_byte_keep_the_fingerprint() -> None:
    before = make_plan(BASE, INT8, RUN)
    run = RUN.replace(direct_writes="never")
    now = make_plan(BASE, INT8.replace(group_size=32, mixed_precision_layers=["nothing"]), run)
    assert before.fingerprint == now.fingerprint


def test_the_fingerprint_is_the_same_on_every_machine() -> None:
    """Pinned: a change here means that a finished dataset is no longer known to be what was asked for; raise
    PLAN_VERSION with it."""
    plan = make_plan(BASE, INT8, RUN)
    made = fingerprint(
        plan.shards, plan.aliases, plan.source["files"], plan.compression, code="", side_inputs={}
    )
    assert made == "xxh3_128:09f4eade032cf8cadd628a7000721cb9"


def test_other_code_is_another_plan_of_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    before = make_plan(BASE, INT8, RUN)
    monkeypatch.setattr("arrowquant_dist.plan.make.code_digest", lambda: "0123456789abcdef")
    now, other = make_plan(BASE, INT8, RUN), make_plan(BASE, INT8.replace(quant_type="int4"), RUN)
    assert now.code == "0123456789abcdef"
    assert before.fingerprint != now.fingerprint
    assert differences(before, now) == [OTHER_CODE]
    assert is_same_work(before, now)
    assert not is_same_work(before, other)
    assert differences(before, other)[:2] == [OTHER_CODE, "quant_type: was 'int8', is 'int4'"]


def test_a_plan_shows_no_credentials() -> None:
    layers = raw_layers([("x", (4, 4), "float32")], "s3://key:hunter2@bucket/a.safetensors?sig=hunter2")
    source = replace(of_layers(layers), uri="s3://key:hunter2@bucket/?sig=hunter2")
    run = RunConfig(storage_options={"secret": "hunter2"})
    plan = make_plan(source, INT8.replace(hessians="s3://k:hunter2@b/h"), run)
    assert b"hunter2" not in written(plan)
    assert "hunter2" not in repr((plan.source, plan.config, plan.notes))
    clean = replace(
        source, uri="s3://bucket/", layers=tuple(replace(x, uri="s3://bucket/a.safetensors") for x in layers)
    )
    clean = replace(clean, files=of_layers(clean.layers).files)
    assert make_plan(clean, INT8, RUN).fingerprint == plan.fingerprint


# -- bad sources -------------------------------------------------------------------------------------------------

_X = raw_layers([("x", (4, 4), "float32")])[0]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (of_layers([]), "holds no layers"),
        (of_layers([replace(_X, name="")]), "a layer has no name"),
        (of_layers([replace(_X, name="\ud800")]), "is not Unicode"),
        (of_layers([replace(_X, name="x" * 70_000)]), "has 70000 bytes"),
        (of_layers([_X, replace(_X, offset=500)]), "layer 'x', .*: is there twice"),
        (of_layers([replace(_X, dtype="float4")]), "dtype 'float4' is not supported"),
        (of_layers([replace(_X, shape=(-4, -4))]), "negative dimension"),
        (of_layers([replace(_X, shape=(1 << 40, 1 << 40))]), "more bytes than any file"),
        (of_layers([replace(_X, shape=(4, 5))]), "has 64 bytes, its shape .* needs 80"),
        (of_layers([replace(_X, offset=-8)]), "outside the file"),
        (
            replace(of_layers([_X]), files=(SourceFile(_X.uri, 120, "v"),)),
            r"100 to 164 are outside the file \(120",
        ),
        (of_layers([_X], {"tied": "gone"}), "layer 'tied', .*which is no layer"),
        (of_layers([_X], {"x": "x"}), "but stored too"),
    ],
)
def test_a_layer_table_that_cannot_be_true_is_refused_before_a_weight_is_read(
    source: Checkpoint, message: str
) -> None:
    with pytest.raises(InvalidCheckpoint, match=message) as error:
        make_plan(source, INT8, RUN)
    assert error.value.uri is not None


# -- sizes and summary -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "shape", "dtype", "nbytes"),
    [
        (INT8, (10, 33), "float32", 10 * 33 + 10 * 4),
        (INT8.replace(symmetric=False), (10, 33), "float32", 10 * 33 + 2 * 10 * 4),
        (GROUPS, (10, 129), "bfloat16", 10 * 65 + 10 * 2 * 4),
        (GROUPS.replace(symmetric=False), (10, 129), "bfloat16", 10 * 65 + 2 * 10 * 2 * 4),
        (GROUPS.replace(quant_type="int3"), (10, 9), "bfloat16", 10 * 4 + 10 * 4),
        (GROUPS.replace(quant_type="int2", group_size=0), (10, 9), "bfloat16", 10 * 3 + 4),
        (INT8, (10,), "float64", 20),
        (INT8, (10,), "int64", 80),
        (INT8, (), "bfloat16", 2),
        (INT8, (0, 7), "float32", 0),
    ],
)
def test_expected_bytes_are_those_of_packed_rows_and_their_scales(
    config: QuantizationConfig, shape: tuple[int, ...], dtype: str, nbytes: int
) -> None:
    (block,) = make_plan(checkpoint({"x": shape}, dtype), config, RUN).blocks
    assert expected_nbytes(block) == nbytes


def test_a_summary_adds_up_and_lists_what_stays_unquantized() -> None:
    shapes = {"embed.w": (1000, 64), "a.w": (300_000, 64), "a.norm": (64,), "b.norm": (64,)}
    config = QuantizationConfig("int4", per_channel=False, mixed_precision_layers=["embed", "lm_head"])
    plan = make_plan(checkpoint(shapes), config, RunConfig(block_bytes=16 * MIB))
    summary = summarize(plan, "out", RUN)
    assert (summary.layers, summary.quantized_layers, summary.row_blocks) == (4, 1, 8)
    assert summary.params == 301_000 * 64 + 128
    assert summary.source_nbytes == 4 * summary.params == sum(shard.source_nbytes for shard in plan.shards)
    assert summary.expected_nbytes == sum(map(expected_nbytes, plan.blocks))
    assert {name: totals.layers for name, totals in summary.types.items()} == {"int4": 1, "fp16": 3}
    assert [layer.name for layer in summary.kept_matrices] == ["embed.w"]
    assert summary.kept_reasons == {"1-D": 2, "mixed_precision_layers: embed": 1}
    assert summary.notes == ("mixed_precision_layers: 'lm_head' matches no layer",)
    assert summary.to_dict()["kept"][0]["name"] == "embed.w"


def test_two_hundred_thousand_layers_are_planned_and_read_back_in_seconds() -> None:
    described = [
        (f"model.layers.{i // 20}.mlp.{i % 20}.weight", (256, 128), "bfloat16") for i in range(200_000)
    ]
    source = of_layers(raw_layers(described))
    config = QuantizationConfig("int4", per_channel=False, mixed_precision_layers=["embed", "lm_head"])
    start = time.process_time()
    plan = make_plan(source, config, RUN)
    assert read_again(written(plan)).fingerprint == plan.fingerprint
    assert time.process_time() - start < 15  # about 4 where nothing else runs
