"""A model that transformers loads from an export computes what the model with our decoded values computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from arrowquant_dist import QuantizationConfig
from arrowquant_dist.config.choices import ScaleDtypeName
from arrowquant_dist.driver import quantize
from arrowquant_dist.errors import InvalidConfig
from tests.export.models import (
    RUN,
    as_decoded,
    difference,
    exported,
    opened,
    outputs,
    quantized,
    small_bert,
    small_llama,
)

_KEEP = ["embed", "lm_head"]
_GROUPS: dict[str, Any] = {"per_channel": False, "group_size": 64}
_WHOLE: dict[str, Any] = {"symmetric": False, "integer_zero_points": True}
_KINDS: dict[str, dict[str, Any]] = {
    "int8 by row": {"quant_type": "int8"},
    "int8 in groups": {"quant_type": "int8", **_GROUPS},
    "int8 with one scale": {"quant_type": "int8", "per_channel": False, "group_size": 0},
    "int4 in groups": {"quant_type": "int4", **_GROUPS},
    "int4 by row": {"quant_type": "int4"},
    "int4 rounded to nearest": {"quant_type": "int4", "method": "rtn", **_GROUPS},
    "int2 in groups": {"quant_type": "int2", "per_channel": False, "group_size": 32},
}
_WITH_ZERO_POINTS: dict[str, dict[str, Any]] = {
    "int4 in groups": {"quant_type": "int4", **_GROUPS, **_WHOLE},
    "int4 by row": {"quant_type": "int4", **_WHOLE},
    "int4 with one": {"quant_type": "int4", "per_channel": False, "group_size": 0, **_WHOLE},
    "int8 by row": {"quant_type": "int8", **_WHOLE},
    "int2 in groups": {"quant_type": "int2", "per_channel": False, "group_size": 32, **_WHOLE},
}
# What a dtype or another family of models may change is the same for all: one of bytes, and one of packed words.
_QUICK = ["int8 by row", "int2 in groups"]
_LIMIT = {"float32": 1e-5, "bfloat16": 1e-3, "float16": 1e-3}
_MODELS = {"llama": small_llama, "bert": small_bert}


def _config(dtype: str, settings: dict[str, Any]) -> QuantizationConfig:
    scales: ScaleDtypeName = "float32" if dtype == "float32" else "bfloat16"
    return QuantizationConfig(mixed_precision_layers=_KEEP, scale_dtype=scales, **settings)


@pytest.mark.parametrize(
    ("family", "dtype", "kind"),
    [
        *(("llama", "float32", kind) for kind in _KINDS),
        *(
            pytest.param("llama", "bfloat16", kind, marks=[] if kind in _QUICK else [pytest.mark.slow])
            for kind in _KINDS
        ),
        ("llama", "float16", "int4 in groups"),
        ("bert", "float32", "int4 in groups"),
        *(pytest.param("bert", "float32", kind, marks=pytest.mark.slow) for kind in _QUICK),
        ("bert", "bfloat16", "int4 in groups"),
    ],
)
def test_logits_are_those_of_the_decoded_model(family: str, dtype: str, kind: str, tmp_path: Path) -> None:
    model = _MODELS[family](dtype)
    dataset = quantized(tmp_path, model, _config(dtype, _KINDS[kind]))
    made = exported(dataset, tmp_path / "out")
    assert made.record.notes == ()
    found = opened(tmp_path / "out")
    assert found.dtype == model.dtype
    decoded = as_decoded(model, dataset)
    assert difference(decoded, model) > 0.01  # codes, and not the weights that they were made of
    assert difference(found, decoded) <= _LIMIT[dtype]


@pytest.mark.parametrize(
    ("family", "dtype", "kind"),
    [
        *(("llama", "float32", kind) for kind in _WITH_ZERO_POINTS),
        ("llama", "bfloat16", "int4 in groups"),
        ("bert", "float32", "int4 in groups"),
    ],
)
def test_so_are_those_of_whole_zero_points_once_dequantized(
    family: str, dtype: str, kind: str, tmp_path: Path
) -> None:
    model = _MODELS[family](dtype)
    dataset = quantized(tmp_path, model, _config(dtype, _WITH_ZERO_POINTS[kind]))
    exported(dataset, tmp_path / "out")
    decoded = as_decoded(model, dataset)
    assert difference(decoded, model) > 0.01
    assert difference(opened(tmp_path / "out", dequantize=True), decoded) <= _LIMIT[dtype]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_int8_activations_take_the_codes_and_float32_scales_as_they_are(dtype: str, tmp_path: Path) -> None:
    model = small_llama(dtype)
    dataset = quantized(tmp_path, model, QuantizationConfig("int8", mixed_precision_layers=_KEEP))
    exported(dataset, tmp_path / "out", activations="int8")
    decoded = as_decoded(model, dataset)
    assert difference(opened(tmp_path / "out", dequantize=True), decoded) <= _LIMIT[dtype]
    if dtype == "float32":  # transformers rounds scales to the model's dtype, vLLM does not
        running = difference(opened(tmp_path / "out"), decoded)
        assert 1e-4 < running < 0.1 * float(outputs(decoded).abs().max())  # activations are quantized too


def test_layers_of_several_schemes_are_told_apart(tmp_path: Path) -> None:
    model = small_llama()
    overrides = [
        {"layers": "*.down_proj.weight", "quant_type": "int8", "per_channel": True},
        {"layers": "*.1.self_attn.o_proj.weight", "quant_type": "int2", "group_size": 32},
        {"layers": "*.0.self_attn.o_proj.weight", "quant_type": "fp16"},
    ]
    config = QuantizationConfig.from_dict(
        {"quant_type": "int4", **_GROUPS, "mixed_precision_layers": _KEEP, "overrides": overrides}
    )
    dataset = quantized(tmp_path, model, config)
    exported(dataset, tmp_path / "out")
    assert difference(opened(tmp_path / "out"), as_decoded(model, dataset)) <= 1e-5
    settings = json.loads((tmp_path / "out/config.json").read_bytes())["quantization_config"]
    assert [group["targets"] for group in settings["config_groups"].values()][1:] == [
        [r"re:model\.layers\.\d+\.mlp\.down_proj$"],
        ["model.layers.1.self_attn.o_proj"],
    ]
    assert "model.layers.0.self_attn.o_proj" in settings["ignore"]


def test_a_quantized_head_is_a_target_of_its_own(tmp_path: Path) -> None:
    model = small_llama()
    dataset = quantized(tmp_path, model, QuantizationConfig("int8", mixed_precision_layers=["embed"]))
    exported(dataset, tmp_path / "out")
    found = opened(tmp_path / "out")
    assert difference(found, as_decoded(model, dataset)) <= 1e-5
    settings = json.loads((tmp_path / "out/config.json").read_bytes())["quantization_config"]
    assert settings["config_groups"]["group_0"]["targets"] == ["lm_head", "Linear"]
    assert settings["ignore"] == []


def test_a_tied_head_is_not_written_twice(tmp_path: Path) -> None:
    model = small_llama(tie_word_embeddings=True)
    dataset = quantized(tmp_path, model, QuantizationConfig("int8", mixed_precision_layers=_KEEP))
    exported(dataset, tmp_path / "out")
    with safe_open(tmp_path / "out/model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if name.startswith("lm_head")]  # noqa: SIM118
    found = opened(tmp_path / "out")
    assert found.lm_head.weight.data_ptr() == found.model.embed_tokens.weight.data_ptr()
    assert difference(found, as_decoded(model, dataset)) <= 1e-5


def test_a_head_that_shares_its_bytes_and_is_not_tied_by_the_config_is_written(tmp_path: Path) -> None:
    model = small_llama()
    model.lm_head.weight.data.copy_(model.model.embed_tokens.weight.data)
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(tmp_path / "source")
    save_file({k: v.clone() for k, v in model.state_dict().items()}, tmp_path / "source/model.safetensors")
    dataset = str(tmp_path / "dataset")
    quantize(str(tmp_path / "source"), dataset, QuantizationConfig("int8", mixed_precision_layers=_KEEP), RUN)
    exported(dataset, tmp_path / "out")
    assert torch.equal(opened(tmp_path / "out").lm_head.weight, model.lm_head.weight)


def test_real_minilm_s_sentences_are_those_of_the_decoded_model(tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    from arrowquant_dist.models import load_model

    dataset = str(tmp_path / "dataset")
    config = QuantizationConfig(
        "int4", per_channel=False, group_size=128, mixed_precision_layers=["embeddings"]
    )
    quantize("minilm", dataset, config, RUN)
    exported(dataset, tmp_path / "out")
    words = AutoTokenizer.from_pretrained(tmp_path / "out")(
        ["a sentence", "two"], padding=True, return_tensors="pt"
    )
    found, decoded = opened(tmp_path / "out"), load_model(dataset, AutoModel)
    with torch.no_grad():
        assert float((found(**words)[0] - decoded(**words)[0]).abs().max()) <= 1e-5


def test_float32_scales_of_a_bfloat16_model_are_refused_or_rounded_and_told_of(tmp_path: Path) -> None:
    model = small_llama("bfloat16")
    dataset = quantized(tmp_path, model, QuantizationConfig("int8", mixed_precision_layers=_KEEP))
    with pytest.raises(InvalidConfig, match=r"down_proj.*scales that bfloat16, .* scale_dtype: bfloat16"):
        exported(dataset, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    made = exported(dataset, tmp_path / "out", requantize=True)
    [note] = made.record.notes
    assert note.startswith("model.layers.0.mlp.down_proj.weight, ")
    assert "with rounded scales" in note
    rounding = difference(opened(tmp_path / "out"), as_decoded(model, dataset))
    assert 0 < rounding < 0.1


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_type": "int3", **_GROUPS},
        {"quant_type": "int4", "per_channel": False, "group_size": 128},  # of 192 and 320 columns
        {"quant_type": "int4", **_GROUPS, "overrides": [{"layers": "*.k_proj.weight", "quant_type": "int8"}]},
        {"quant_type": "int4", **_GROUPS, "overrides": [{"layers": "*.up_proj.weight", "group_size": 32}]},
    ],
    ids=["int3", "short last groups", "two widths of q, k and v", "two groups of gate and up"],
)
def test_what_other_codes_can_stand_for_loses_nothing(settings: dict[str, Any], tmp_path: Path) -> None:
    model = small_llama()
    config = QuantizationConfig.from_dict({"mixed_precision_layers": _KEEP, **settings})
    dataset = quantized(tmp_path, model, config)
    with pytest.raises(InvalidConfig, match="--requantize"):
        exported(dataset, tmp_path / "out")
    made = exported(dataset, tmp_path / "out", requantize=True)
    assert all("the same values as int" in note for note in made.record.notes)
    assert difference(opened(tmp_path / "out"), as_decoded(model, dataset)) <= 1e-5
