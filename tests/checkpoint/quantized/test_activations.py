"""Scales of activations next to decoded weights are left out and listed; a model's own parameters stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from arrowquant_dist import QuantizationConfig, WeightLoader
from arrowquant_dist.checkpoint.quantized.activations import LEFT_OUT, UNCLEAR
from arrowquant_dist.config import RunConfig
from arrowquant_dist.driver import quantize
from arrowquant_dist.plan import make_plan, summarize
from tests.checkpoint.quantized_models import float8, save_model, scales, values_of

ONE = torch.ones(())
ATTENTION = "model.layers.0.self_attn"
PROJECTION = {f"{ATTENTION}.k_proj.weight": float8(4, 6), f"{ATTENTION}.k_proj.weight_scale": scales(1)}
EXPERTS = {"m.experts.down_proj": float8(2, 4, 6), "m.experts.down_proj_weight_scale": scales(2)}


@pytest.mark.parametrize(
    "name",
    [
        *(
            f"{ATTENTION}.k_proj.{last}"
            for last in ("input_scale", "activation_scale", "act_scale", "k_scale")
        ),
        *(
            f"{ATTENTION}.k_proj.{last}"
            for last in ("output_scale", "scale_input", "qscale_act", "input_scale_ub")
        ),
        *(f"{ATTENTION}.k_proj.{last}" for last in ("input_global_scale", "input_zero_point", "comfy_quant")),
        *(
            f"{ATTENTION}.{last}"
            for last in ("k_scale", "v_scale", "q_scale", "prob_output_scale", "kv_scale")
        ),
        *(f"{ATTENTION}.k_proj.activation_scaling_factor", f"{ATTENTION}.kv_cache_scaling_factor"),
        *(f"{ATTENTION}.attn.k_scale", f"{ATTENTION}.kv_fake_quantizer.qscale_act"),
        "m.experts.down_proj_input_scale",
        "m.experts.down_proj_activation_scale",
        "scaled_fp8",
    ],
)
def test_what_only_ran_the_quantized_model_is_left_out_and_the_plan_lists_it(
    tmp_path: Path, name: str
) -> None:
    value = torch.zeros(2, dtype=torch.uint8) if name.endswith("comfy_quant") else ONE
    if name.endswith("comfy_quant"):
        value = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    checkpoint = save_model(tmp_path, {**PROJECTION, **EXPERTS, name: value, "norm.weight": torch.ones(4)})
    made = {f"{ATTENTION}.k_proj.weight", "m.experts.down_proj", "norm.weight"}
    assert values_of(checkpoint).keys() == made
    assert checkpoint.left_out == {name: LEFT_OUT}
    plan = make_plan(checkpoint, QuantizationConfig(), RunConfig())
    assert summarize(plan, "out", RunConfig()).left_out == {name: LEFT_OUT}
    assert f"left out of the dataset, {LEFT_OUT}: {name}" in plan.notes


@pytest.mark.parametrize(
    "name",
    [
        "logit_scale",
        "layers.0.layer_scale",
        "q_norm.scale",
        "other.input_scale",
        "vision.attn.k_scale",
        "k_scale",
    ],
)
def test_what_belongs_to_nothing_that_was_decoded_stays(tmp_path: Path, name: str) -> None:
    checkpoint = save_model(tmp_path, {**PROJECTION, **EXPERTS, name: torch.ones(4, 4)})
    assert name in values_of(checkpoint)
    assert checkpoint.left_out == checkpoint.kept == {}


@pytest.mark.parametrize("name", ["a.input_scale", "self_attn.k_scale", "scaled_fp8", "a.activation_scale"])
def test_nothing_is_left_out_of_a_model_that_is_not_quantized(tmp_path: Path, name: str) -> None:
    tensors = {"a.weight": torch.ones(4, 4), "self_attn.k_proj.weight": torch.ones(4, 4), name: ONE}
    assert values_of(save_model(tmp_path, tensors)).keys() == tensors.keys()


def test_what_is_not_clear_stays_byte_for_byte_and_is_named(tmp_path: Path) -> None:
    names = {f"{ATTENTION}.k_scale": torch.ones(4, 4), f"{ATTENTION}.k_proj.smooth_scale": torch.ones(6, 6)}
    checkpoint = save_model(tmp_path, {**PROJECTION, **names})
    assert checkpoint.kept == dict.fromkeys(names, UNCLEAR)
    plan = make_plan(checkpoint, QuantizationConfig(), RunConfig())
    kept = {block.layer.name: block.spec.quant_type for block in plan.blocks if block.kept_reason}
    assert kept == dict.fromkeys(names, "none")
    assert any(UNCLEAR in note and all(name in note for name in names) for note in plan.notes)


def test_scales_of_the_cache_for_each_head_are_left_out_where_the_config_speaks_of_them(
    tmp_path: Path,
) -> None:
    name = f"{ATTENTION}.k_scale"
    config = {"quant_method": "fp8", "kv_cache_scheme": {"num_bits": 8}}
    assert save_model(tmp_path, {**PROJECTION, name: torch.ones(4)}, config).left_out.keys() == {name}


def test_the_dataset_has_the_names_of_the_full_precision_release(tmp_path: Path) -> None:
    extra = {f"{ATTENTION}.k_proj.input_scale": ONE, f"{ATTENTION}.k_scale": torch.full((), 2.0)}
    save_model(tmp_path / "fp8", {**PROJECTION, **extra}, {"quant_method": "fp8"})
    run = RunConfig(engine="inline")
    quantize(str(tmp_path / "fp8"), str(tmp_path / "out"), QuantizationConfig(), run)
    with WeightLoader(str(tmp_path / "out")) as loader:
        assert [name for name, _ in loader] == [f"{ATTENTION}.k_proj.weight"]
