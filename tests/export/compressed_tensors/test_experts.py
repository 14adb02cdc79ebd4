"""Experts that a source has in one tensor are written one by one, under their family's names, with their own codes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from arrowquant_dist import QuantizationConfig, WeightLoader
from arrowquant_dist.driver import quantize
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.export.compressed_tensors.experts import (
    block_renamed,
    turned_modules,
    unfused,
    why_not_unfused,
)
from tests.export.models import DTYPES, RUN, as_decoded, difference, exported, opened, quantized

_CONFIG = QuantizationConfig(
    "int4", per_channel=False, group_size=32, mixed_precision_layers=["embed", "lm_head"]
)
_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 101,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}


def _mixtral() -> Any:
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(**_SIZES, num_local_experts=4)).eval()


def _qwen() -> Any:
    torch.manual_seed(0)
    own = {"num_experts": 4, "moe_intermediate_size": 32, "head_dim": 16}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**_SIZES, **own)).eval()


_MODELS = {"mixtral": _mixtral, "qwen3_moe": _qwen}
_NAMES = {
    "mixtral": ("block_sparse_moe", {"w1", "w2", "w3"}),
    "qwen3_moe": ("mlp", {"gate_proj", "up_proj", "down_proj"}),
}


def _llama4() -> Any:
    torch.manual_seed(0)
    own = {"num_local_experts": 4, "head_dim": 16, "intermediate_size_mlp": 64, "pad_token_id": None}
    return Llama4ForCausalLM(Llama4TextConfig(**_SIZES, **own)).eval()


def _fused(folder: Path, model: Any, config: QuantizationConfig = _CONFIG, block: str = "mlp") -> str:
    """A dataset of what the model holds in memory: `experts.gate_up_proj` and `experts.down_proj`."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder / "source")
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    assert f"model.layers.0.{block}.experts.gate_up_proj" in tensors
    save_file(tensors, folder / "source/model.safetensors")
    quantize(str(folder / "source"), str(folder / "dataset"), config, RUN)
    return str(folder / "dataset")


@pytest.mark.parametrize("family", _MODELS)
def test_experts_of_their_own_are_written_as_they_are(family: str, tmp_path: Path) -> None:
    model = _MODELS[family]()
    dataset = quantized(tmp_path, model, _CONFIG)
    exported(dataset, tmp_path / "out")
    exported_plain = AutoModelForCausalLM.from_pretrained(_decoded(dataset, tmp_path))
    assert difference(opened(tmp_path / "out"), exported_plain) <= 1e-5


def _decoded(dataset: str, folder: Path) -> Path:
    """A folder of the dataset's decoded values, by the safetensors package."""
    (folder / "plain").mkdir()
    (folder / "plain/config.json").write_bytes((Path(dataset) / "config.json").read_bytes())
    with WeightLoader(dataset) as loader:
        save_file({name: value.contiguous() for name, value in loader}, folder / "plain/model.safetensors")
    return folder / "plain"


@pytest.mark.parametrize("family", _MODELS)
def test_fused_experts_are_written_one_by_one_and_every_one_is_there(family: str, tmp_path: Path) -> None:
    model = _MODELS[family]()
    dataset = _fused(tmp_path, model)
    assert exported(dataset, tmp_path / "out").record.notes == ()
    block, names = _NAMES[family]
    found = {name for name in load_file(tmp_path / "out/model.safetensors") if ".experts." in name}
    assert found == {
        f"model.layers.{layer}.{block}.experts.{expert}.{own}.weight_{kind}"
        for layer in range(2)
        for expert in range(4)
        for own in names
        for kind in ("packed", "scale", "shape")
    }
    decoded = as_decoded(model, dataset)
    assert difference(decoded, model) > 1e-3
    for dequantize in (False, True):
        assert difference(opened(tmp_path / "out", dequantize=dequantize), decoded) <= 1e-5
    settings = json.loads((tmp_path / "out/config.json").read_bytes())["quantization_config"]
    assert settings["ignore"] == ["lm_head", *(f"model.layers.{layer}.{block}.gate" for layer in range(2))]


def test_fused_experts_that_are_kept_are_taken_apart_too(tmp_path: Path) -> None:
    model = _qwen()
    config = QuantizationConfig("int8", mixed_precision_layers=["embed", "lm_head", "experts"])
    dataset = _fused(tmp_path, model, config)
    exported(dataset, tmp_path / "out")
    tensors = load_file(tmp_path / "out/model.safetensors")
    gate = model.model.layers[1].mlp.experts.gate_up_proj[3, :32]
    assert torch.allclose(tensors["model.layers.1.mlp.experts.3.gate_proj.weight"], gate, atol=1e-4)
    settings = json.loads((tmp_path / "out/config.json").read_bytes())["quantization_config"]
    assert "model.layers.1.mlp.experts.3.up_proj" in settings["ignore"]


@pytest.mark.parametrize("layers", ["*.0.mlp.experts.down_proj", "*.0.mlp.experts.*"])
def test_experts_that_differ_are_refused_and_get_the_widest(layers: str, tmp_path: Path) -> None:
    model = _qwen()
    config = _CONFIG.replace(overrides=[{"layers": layers, "quant_type": "int8"}])
    dataset = _fused(tmp_path, model, config)
    with pytest.raises(
        InvalidConfig, match=r"experts.0.gate_proj.weight.*but readers have one for all experts"
    ):
        exported(dataset, tmp_path / "out")
    exported(dataset, tmp_path / "out", requantize=True)
    tensors = load_file(tmp_path / "out/model.safetensors")
    packed = {tensor.shape[1] for name, tensor in tensors.items() if name.endswith("gate_proj.weight_packed")}
    assert packed == {16}  # 64 codes of 8 bits
    assert difference(opened(tmp_path / "out"), as_decoded(model, dataset)) <= 1e-5
    settings = json.loads((tmp_path / "out/config.json").read_bytes())["quantization_config"]
    first, second = settings["config_groups"].values()
    assert r"re:model\.layers\.\d+\.mlp\.experts\.\d+\.gate_proj$" in first["targets"]
    assert first["weights"]["num_bits"] == 8
    assert not [target for target in second["targets"] if "experts" in target]


_SHAPES = {"b.experts.gate_up_proj": (4, 64, 48), "b.experts.down_proj": (4, 48, 32)}
_TURNED = {"b.experts.gate_up_proj": (4, 48, 64), "b.experts.down_proj": (4, 32, 48)}


def test_of_experts_with_zero_points_it_is_told_that_transformers_does_not_load_them(tmp_path: Path) -> None:
    config = replace(_CONFIG, symmetric=False, integer_zero_points=True)
    made = exported(quantized(tmp_path, _mixtral(), config), tmp_path / "out")
    (note,) = made.record.notes
    assert re.search(
        r"experts\.0\.w1\.weight.* and 19 more: experts with zero points, which transformers", note
    )
    with pytest.raises(RuntimeError, match="conversion of the weights"):  # or the sentence is true no more
        opened(tmp_path / "out", dequantize=True)


@pytest.mark.parametrize("name", _SHAPES)
@pytest.mark.parametrize(
    ("family", "row_dims", "shapes", "reason"),
    [
        ("qwen3_moe", 2, _SHAPES, None),
        ("mixtral", 2, _SHAPES, None),
        ("llama4", 2, _TURNED, "stored transposed"),
        ("gpt_oss", 2, _TURNED, "it is not known how vLLM stores them for gpt_oss"),
        ("granitemoe", 2, _SHAPES, "it is not known how vLLM stores them for granitemoe"),
        ("", 2, _SHAPES, "it is not known how vLLM stores them for this model"),
        ("qwen3_vl_moe", 2, _TURNED, "stored transposed"),
        ("qwen3_moe", 1, _SHAPES, "one scale for rows of several experts"),
    ],
)
def test_only_experts_whose_rows_stay_rows_are_taken_apart(
    family: str, row_dims: int, shapes: dict[str, tuple[int, ...]], reason: str | None, name: str
) -> None:
    found = why_not_unfused(name, row_dims, family, shapes)
    assert found is None if reason is None else reason in str(found)


def test_half_of_the_experts_are_none() -> None:
    alone = {"b.experts.down_proj": (4, 48, 32)}
    assert "without the other half" in str(why_not_unfused("b.experts.down_proj", 2, "qwen3_moe", alone))


def test_rows_of_each_expert_follow_each_other() -> None:
    parts = unfused("b.experts.gate_up_proj", (2, 6, 5), "qwen3_moe")
    assert [(part.name, part.shape, part.row_start, part.row_stop) for part in parts] == [
        ("b.experts.0.gate_proj.weight", (3, 5), 0, 3),
        ("b.experts.0.up_proj.weight", (3, 5), 3, 6),
        ("b.experts.1.gate_proj.weight", (3, 5), 6, 9),
        ("b.experts.1.up_proj.weight", (3, 5), 9, 12),
    ]
    down = unfused("b.experts.down_proj.weight", (2, 4, 5), "mixtral")
    assert [(part.name, part.row_start, part.row_stop) for part in down] == [
        ("b.experts.0.w2.weight", 0, 4),
        ("b.experts.1.w2.weight", 4, 8),
    ]


def test_the_block_of_fused_experts_gets_the_name_of_the_family_s_checkpoints() -> None:
    assert (
        block_renamed("model.layers.0.mlp.gate.weight", "mixtral")
        == "model.layers.0.block_sparse_moe.gate.weight"
    )
    assert block_renamed("model.layers.0.mlp.gate.weight", "qwen3_moe") == "model.layers.0.mlp.gate.weight"
    assert (
        block_renamed("model.layers.0.mlp.up_proj.weight", "mixtral") == "model.layers.0.mlp.up_proj.weight"
    )


def test_turned_experts_are_refused_by_name_and_kept_where_that_is_asked_for(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    block = "model.language_model.layers.0.mlp"
    tensors = {
        f"{block}.experts.gate_up_proj": torch.randn(4, 48, 64, generator=generator),
        f"{block}.experts.down_proj": torch.randn(4, 32, 48, generator=generator),
        f"{block}.gate.weight": torch.randn(4, 48, generator=generator),
        "model.language_model.layers.0.self_attn.q_proj.weight": torch.randn(48, 48, generator=generator),
    }
    (tmp_path / "source").mkdir()
    save_file(tensors, tmp_path / "source/model.safetensors")
    (tmp_path / "source/config.json").write_text('{"model_type": "qwen3_vl_moe", "dtype": "float32"}')
    quantize(str(tmp_path / "source"), str(tmp_path / "dataset"), QuantizationConfig("int8"), RUN)
    with pytest.raises(
        InvalidConfig, match=r"experts.down_proj, .*experts.gate_up_proj: fused experts.*transposed"
    ):
        exported(str(tmp_path / "dataset"), tmp_path / "out")
    exported(str(tmp_path / "dataset"), tmp_path / "out", requantize=True)
    found = load_file(tmp_path / "out/model.safetensors")
    with WeightLoader(str(tmp_path / "dataset")) as loader:
        assert torch.equal(found[f"{block}.experts.down_proj"], loader[f"{block}.experts.down_proj"])
    ignored = json.loads((tmp_path / "out/config.json").read_bytes())["quantization_config"]["ignore"]
    assert ignored == [r"re:.*model\.language_model\.layers\.0\.mlp\.experts", f"{block}.gate", "lm_head"]


@pytest.mark.parametrize("kind", ["kept", "quantized", "from the source"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_llama_4_s_experts_are_turned_and_written_one_by_one(dtype: str, kind: str, tmp_path: Path) -> None:
    """Transformers has a Linear each in their place once a checkpoint has codes, and leaves out fused ones."""
    model = _llama4().to(DTYPES[dtype])
    kept = ["embed", "lm_head", *(["experts"] if kind == "kept" else [])]
    config = QuantizationConfig("int8", mixed_precision_layers=kept, scale_dtype="bfloat16")
    dataset = _fused(tmp_path, model, config, block="feed_forward")
    name = "model.layers.0.feed_forward.experts.gate_up_proj"
    if kind != "kept":
        with pytest.raises(InvalidConfig, match=rf"{re.escape(name)}.*: fused experts.*transposed"):
            exported(dataset, tmp_path / "out")
    source = str(tmp_path / "source") if kind == "from the source" else None
    exported(dataset, tmp_path / "out", requantize=kind != "kept", source=source)
    found = load_file(tmp_path / "out/model.safetensors")
    with WeightLoader(dataset) as loader:
        for layer in range(2):
            block = f"model.layers.{layer}.feed_forward.experts"
            own = (loader if source is None else model.state_dict())[f"{block}.gate_up_proj"]
            down = (loader if source is None else model.state_dict())[f"{block}.down_proj"]
            for expert in range(4):
                gate, up = own[expert].T.chunk(2)
                assert torch.equal(found[f"{block}.{expert}.gate_proj.weight"], gate)
                assert torch.equal(found[f"{block}.{expert}.up_proj.weight"], up)
                assert torch.equal(found[f"{block}.{expert}.down_proj.weight"], down[expert].T)
    assert not any(name.endswith(("experts.gate_up_proj", "experts.down_proj")) for name in found)
    decoded = as_decoded(model, dataset) if source is None else None
    for dequantize in (False, True):
        served = opened(tmp_path / "out", dequantize=dequantize)
        if decoded is not None:
            assert difference(served, decoded) <= (1e-5 if dtype == "float32" else 2e-2)


@pytest.mark.parametrize(
    ("model_type", "shapes", "expected"),
    [
        ("llama4", {"gate_up_proj": (4, 48, 64), "down_proj": (4, 32, 48)}, ("gate_proj", "up_proj")),
        ("llama4_text", {"gate_up_proj": (4, 48, 64), "down_proj": (4, 32, 48)}, ("gate_proj", "up_proj")),
        ("llama4", {"gate_up_proj": (4, 64, 48), "down_proj": (4, 48, 32)}, ()),
        ("llama4", {"gate_up_proj": (4, 48, 64)}, ()),
        ("gpt_oss", {"gate_up_proj": (4, 48, 64), "down_proj": (4, 32, 48)}, ()),
        ("qwen3_vl_moe", {"gate_up_proj": (4, 48, 64), "down_proj": (4, 32, 48)}, ()),
    ],
)
def test_experts_are_turned_where_a_reader_wants_them_so(
    model_type: str, shapes: dict[str, tuple[int, ...]], expected: tuple[str, ...]
) -> None:
    named = {f"b.experts.{own}": shape for own, shape in shapes.items()}
    assert turned_modules("b.experts.gate_up_proj", model_type, named) == expected
