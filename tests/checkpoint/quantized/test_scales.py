"""Float8 scales are found under every name and in every shape in use; a tensor without a known scale is an error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from arrowquant_dist import QuantizationConfig
from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.config import RunConfig
from arrowquant_dist.driver import quantize
from arrowquant_dist.errors import InvalidCheckpoint, InvalidConfig
from arrowquant_dist.plan import Plan, make_plan
from tests.checkpoint.quantized_models import Tensors, assert_equal, float8, save_model, scales, values_of
from tests.datasets import weights_of


def planned(checkpoint: Checkpoint, **config: object) -> Plan:
    return make_plan(checkpoint, QuantizationConfig.from_dict(config), RunConfig())


@pytest.mark.parametrize(
    ("codes", "scale", "name"),
    [
        ("a.b.weight", "a.b.weight_scale_inv", None),
        ("a.b.weight", "a.b.weight_scale", None),
        ("a.b.weight", "a.b.scale", None),
        ("a.b.weight", "a.b.scale_inv", None),
        ("a.b.weight", "a.b.scale_weight", None),
        ("a.b.weight", "a.b.qscale_weight", None),
        ("a.b.weight", "a.b.weights_scaling_factor", None),
        ("experts.gate_up_proj", "experts.gate_up_proj_scale", None),
        ("experts.gate_up_proj", "experts.gate_up_proj_scale_inv", None),
        ("experts.gate_up_proj", "experts.gate_up_proj_weight_scale", None),
        ("experts.gate_up_proj", "experts.gate_up_proj_weight_scale_inv", None),
        ("experts.gate_up_proj", "experts.gate_up_proj.scale_weight", None),
        ("experts.w13_weight", "experts.w13_weight_scale", None),
        ("experts.w13_weight", "experts.w13_scale", None),
        ("w1", "w1_scale", None),
        ("a._weight_qdata", "a._weight_scale", "a.weight"),
    ],
)
def test_scales_are_found_under_every_name_that_is_in_use(
    tmp_path: Path, codes: str, scale: str, name: str | None
) -> None:
    weight, factor = float8(4, 6), scales(1)
    checkpoint = save_model(tmp_path, {codes: weight, scale: factor})
    found = values_of(checkpoint)
    assert found.keys() == {name or codes}
    assert_equal(found[name or codes], (weight.float() * factor).to(torch.bfloat16))
    assert checkpoint.decoded == {scale: name or codes} | ({codes: name} if name else {})
    assert planned(checkpoint).shards


@pytest.mark.parametrize(
    ("shape", "scale_shape", "spread"),
    [
        ((3, 8, 6), (3, 1, 6), (3, 1, 6)),  # a column
        ((3, 8, 6), (3, 6, 1), (3, 1, 6)),  # a column, as FBGEMM writes that of down_proj
        ((3, 8, 6), (3, 6), (3, 1, 6)),  # a column, as ModelOpt writes that of experts [experts, in, out]
        ((3, 8, 6), (3, 8), (3, 8, 1)),
        ((3, 8, 6), (3, 1), (3, 1, 1)),
        ((8, 6), (1, 6), (1, 6)),
        ((8, 6), (8,), (8, 1)),
    ],
)
def test_columns_and_matrices_of_a_stack_have_scales_of_their_own(
    tmp_path: Path, shape: tuple[int, ...], scale_shape: tuple[int, ...], spread: tuple[int, ...]
) -> None:
    weight, factor = float8(*shape), scales(*scale_shape)
    found = values_of(save_model(tmp_path, {"e.down_proj": weight, "e.down_proj_scale": factor}))
    expected = (weight.float() * factor.reshape(spread)).to(torch.bfloat16)
    assert_equal(found["e.down_proj"], expected)


def test_fbgemm_s_square_experts_have_a_scale_a_column(tmp_path: Path) -> None:
    weight, factor = float8(3, 8, 8), scales(3, 8, 1)
    tensors = {"experts.down_proj": weight, "experts.down_proj_scale": factor}
    found = values_of(save_model(tmp_path, tensors, {"quant_method": "fbgemm_fp8"}))
    expected = (weight.float() * factor.reshape(3, 1, 8)).to(torch.bfloat16)
    assert_equal(found["experts.down_proj"], expected)


def test_two_matrices_that_were_put_together_have_two_scales(tmp_path: Path) -> None:
    weight, factor = float8(3, 8, 6), scales(3, 2)
    found = values_of(
        save_model(tmp_path, {"experts.w13_weight": weight, "experts.w13_weight_scale": factor})
    )
    expected = (weight.float() * factor.repeat_interleave(4, 1)[..., None]).to(torch.bfloat16)
    assert_equal(found["experts.w13_weight"], expected)


def test_blocks_of_scales_may_have_dimensions_of_one_between(tmp_path: Path) -> None:
    weight, factor = float8(256, 384), scales(2, 1, 3, 1)
    found = values_of(save_model(tmp_path, {"a.weight": weight, "a.weight_scale": factor}))
    spread = factor.reshape(2, 3).repeat_interleave(128, 0).repeat_interleave(128, 1)
    assert_equal(found["a.weight"], (weight.float() * spread).to(torch.bfloat16))


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (-scales(1), "some of its scales are negative"),
        (torch.zeros(1), "its scale is 0, but its codes are not all 0"),
    ],
)
def test_scales_that_no_library_writes_are_named(tmp_path: Path, scale: torch.Tensor, message: str) -> None:
    save_model(tmp_path / "fp8", {"a.weight": float8(4, 6), "a.weight_scale": scale})
    run = RunConfig(engine="inline")
    with pytest.raises(InvalidCheckpoint, match=rf"layer 'a\.weight'.*{message}"):
        quantize(str(tmp_path / "fp8"), str(tmp_path / "out"), QuantizationConfig(), run)
    assert not (tmp_path / "out" / "manifest.json").exists()


UNKNOWN: list[Tensors] = [
    {"a.weight": float8(4, 6), "a.weight_magnitude": scales(4), "b.weight": torch.ones(4, 4)},
    {"a.weight": float8(4, 6, dtype=torch.float8_e5m2), "a.weight_magnitude": scales(4)},
    {"a.weight": float8(4, 6).view(torch.float8_e8m0fnu), "a.weight_magnitude": scales(4)},
]


@pytest.mark.parametrize("tensors", UNKNOWN)
def test_float8_whose_scale_nobody_knows_is_an_error_that_names_its_neighbours(
    tmp_path: Path, tensors: Tensors
) -> None:
    checkpoint = save_model(tmp_path, tensors)
    unknown = r"layer 'a\.weight'.*whose scale is unknown: the tensors beside it are a\.weight_magnitude; "
    with pytest.raises(InvalidCheckpoint, match=rf"{unknown}.*unscaled_float8"):
        planned(checkpoint)
    assert checkpoint.unscaled == {"a.weight": ("a.weight_magnitude",)}


def test_such_errors_stay_short(tmp_path: Path) -> None:
    checkpoint = save_model(tmp_path, {f"layers.{i}.weight": float8(4, 6) for i in range(300)})
    with pytest.raises(InvalidCheckpoint, match="and 294 more") as error:
        planned(checkpoint)
    assert len(str(error.value)) < 600


def test_the_config_says_that_the_numbers_are_the_weights_which_are_quantized_like_any(
    tmp_path: Path,
) -> None:
    weight = float8(4, 6)
    for name, tensor in (("fp8", weight), ("float32", weight.float())):
        save_model(tmp_path / name, {"a.weight": tensor, "a.bias": torch.ones(4)})
    config = QuantizationConfig(unscaled_float8=["a.w*"])
    run = RunConfig(engine="inline")
    quantize(str(tmp_path / "fp8"), str(tmp_path / "fp8-int8"), config, run)
    quantize(str(tmp_path / "float32"), str(tmp_path / "float32-int8"), QuantizationConfig(), run)
    found, expected = weights_of(tmp_path / "fp8-int8"), weights_of(tmp_path / "float32-int8")
    assert found == expected


@pytest.mark.parametrize("patterns", [["b.weight"], ["a", "norm"]])
def test_a_pattern_that_means_no_such_layer_is_an_error(tmp_path: Path, patterns: list[str]) -> None:
    checkpoint = save_model(tmp_path, {"a.weight": float8(4, 6), "norm.weight": torch.ones(4)})
    with pytest.raises(InvalidConfig, match=r"unscaled_float8\[\d\].*matches no float8 layer without scales"):
        planned(checkpoint, unscaled_float8=patterns)


def test_scaled_layers_need_no_word_of_the_config(tmp_path: Path) -> None:
    checkpoint = save_model(tmp_path, {"a.weight": float8(4, 6), "a.weight_scale": scales(1)})
    with pytest.raises(InvalidConfig, match="matches no float8 layer"):
        planned(checkpoint, unscaled_float8=["a.weight"])
    assert checkpoint.unscaled == {}


def test_mistral_s_params_no_longer_speak_of_codes_either(tmp_path: Path) -> None:
    save_model(
        tmp_path / "fp8", {"w.weight": float8(4, 6), "w.qscale_weight": scales(1), "w.qscale_act": scales(1)}
    )
    params = {"dim": 6, "quantization": {"qformat_weight": "fp8_e4m3"}}
    (tmp_path / "fp8" / "params.json").write_text(json.dumps(params))
    (tmp_path / "fp8" / "hf_quant_config.json").write_text("{}")
    quantize(str(tmp_path / "fp8"), str(tmp_path / "out"), QuantizationConfig(), RunConfig(engine="inline"))
    assert json.loads((tmp_path / "out" / "params.json").read_text()) == {"dim": 6}
    assert not (tmp_path / "out" / "hf_quant_config.json").exists()


@pytest.mark.parametrize("params", ["[]", "{", '{"dim": 6}', '"quantization"'])
def test_params_that_are_another_program_s_stay_as_they_are(tmp_path: Path, params: str) -> None:
    save_model(tmp_path / "fp8", {"w.weight": float8(4, 6), "w.scale": scales(1)})
    (tmp_path / "fp8" / "params.json").write_text(params)
    quantize(str(tmp_path / "fp8"), str(tmp_path / "out"), QuantizationConfig(), RunConfig(engine="inline"))
    assert (tmp_path / "out" / "params.json").read_text() == params


def test_the_published_config_no_longer_speaks_of_codes_and_the_rest_of_it_stays(tmp_path: Path) -> None:
    tensors = {"a.weight": float8(4, 6), "a.scale_weight": scales(1), "scaled_fp8": torch.zeros(2)}
    save_model(tmp_path / "fp8", tensors, {"quant_method": "fp8"}, hidden_size=6)
    quantize(str(tmp_path / "fp8"), str(tmp_path / "out"), QuantizationConfig(), RunConfig(engine="inline"))
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"hidden_size": 6}
