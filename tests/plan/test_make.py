"""Plans: what is quantized and how, what stays as it is and why, and settings that fit no layer."""

from __future__ import annotations

import pytest

from arrowquant_dist.config import LayerOverride, QuantizationConfig, RunConfig
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.plan import Plan, make_plan
from tests.plan.plan_bytes import read_again, written
from tests.plan.plan_sources import checkpoint, of_layers, raw_layers

INT8, RUN = QuantizationConfig(), RunConfig()


def reasons(plan: Plan) -> dict[str, str | None]:
    return {block.layer.name: block.kept_reason for block in plan.blocks}


def specs(plan: Plan) -> dict[str, str]:
    return {block.layer.name: block.spec.quant_type for block in plan.blocks}


@pytest.mark.parametrize(
    ("shape", "dtype", "reason", "stored"),
    [
        ((), "float32", "0-D", "none"),
        ((5,), "float64", "1-D", "none"),
        ((5,), "bfloat16", "1-D", "none"),
        ((5,), "float16", "1-D", "none"),
        ((4, 5), "int64", "integer dtype int64", "none"),
        ((4, 5), "bool", "bool", "none"),
        ((4, 0), "float32", "empty", "none"),
        ((1, 1, 5), "float32", "vector (3-D)", "none"),
        ((5, 1), "float32", "vector (2-D)", "none"),
        ((1, 5), "bfloat16", "vector (2-D)", "none"),
        ((1, 1), "float64", "vector (2-D)", "none"),
        ((2, 1, 5), "float32", None, "int8"),
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
            r"overrides\[0\].layers: .* matches no layer; did you mean model.layers.0.down_proj.weight",
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


@pytest.mark.parametrize("count", [50_000, pytest.param(200_000, marks=pytest.mark.slow)])
def test_tens_of_thousands_of_layers_are_planned_and_read_back(count: int) -> None:
    """In a second; whatever looked at each pair of them would not end within the time that a test has."""
    described = [
        (f"model.layers.{i // 20}.mlp.{i % 20}.weight", (256, 128), "bfloat16") for i in range(count)
    ]
    source = of_layers(raw_layers(described))
    config = QuantizationConfig("int4", per_channel=False, mixed_precision_layers=["embed", "lm_head"])
    plan = make_plan(source, config, RUN)
    assert read_again(written(plan)).fingerprint == plan.fingerprint
