"""Layers that GGUF cannot hold are refused by name before anything is written, and made to fit if that is asked for."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from arrowquant_dist import ArrowQuantizer, ExportOptions, QuantizationConfig, WeightLoader, export_dataset
from arrowquant_dist.errors import ArrowQuantError, InvalidConfig, UnquantizableWeights
from tests.export.gguf.models import byte_pairs, save_model

Q = "model.layers.0.self_attn.v_proj.weight"  # whose rows keep their order
IN_GGUF = "blk.0.attn_v.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save_model(folder, "llama", byte_pairs(), num_hidden_layers=1)
    return folder


def dataset_of(source: Path, target: Path, **layer: Any) -> Path:
    """Of int8 in groups of 32, but for Q, which is as `layer` says."""
    overrides: list[Any] = [{"layers": Q, **layer}] if layer else []
    config = QuantizationConfig("int8", per_channel=False, group_size=32, overrides=overrides)
    ArrowQuantizer(config).quantize(source, target)
    return target


def export(target: Path, out: Path, **options: Any) -> dict[str, Any]:
    """Tensors of the output by name."""
    export_dataset(target, out, ExportOptions("gguf", **options))
    return {tensor.name: tensor for tensor in gguf.GGUFReader(out / "model.gguf").tensors}


def values(tensor: Any) -> np.ndarray:
    decoded: np.ndarray = gguf.dequantize(tensor.data, tensor.tensor_type)
    return decoded


ODD: dict[str, tuple[dict[str, Any], str]] = {
    "int3": ({"quant_type": "int3"}, "int3"),
    "int3 with zero points": ({"quant_type": "int3", "symmetric": False}, "int3 with zero points"),
    "int2 in small groups": ({"quant_type": "int2"}, "int2 in groups of 32, not a multiple of 256"),
    "int2 with zero points": ({"quant_type": "int2", "symmetric": False}, "int2 with zero points"),
    "int4 in groups of 48": (
        {"quant_type": "int4", "group_size": 48},
        "int4 in groups of 48, not a multiple of 32",
    ),
    "int8 with zero points": ({"symmetric": False}, "int8 with zero points"),
}


@pytest.mark.parametrize("odd", ODD)
def test_codes_that_no_block_holds_are_refused_by_their_layer(odd: str, source: Path, tmp_path: Path) -> None:
    layer, reason = ODD[odd]
    target = dataset_of(source, tmp_path / "dataset", **layer)
    with pytest.raises(
        InvalidConfig, match=re.escape(f"{reason} ({Q})") + ".*configs/gguf-q4.*--requantize"
    ) as error:
        export_dataset(target, tmp_path / "out", ExportOptions("gguf"))
    assert error.value.exit_code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("odd", "blocks", "steps"),
    [
        ("int3", "Q4_0", 0.02),  # no step lost: rounding of scales alone
        ("int3 with zero points", "Q4_1", 0.1),
        ("int2 in small groups", "Q4_0", 0.02),
        ("int2 with zero points", "Q4_1", 0.1),
        ("int4 in groups of 48", "Q4_0", 1.1),
        ("int8 with zero points", "Q8_0", 1.1),
    ],
)
def test_requantize_makes_them_fit(odd: str, blocks: str, steps: float, source: Path, tmp_path: Path) -> None:
    target = dataset_of(source, tmp_path / "dataset", **ODD[odd][0])
    tensor = export(target, tmp_path / "out", requantize=True)[IN_GGUF]
    assert tensor.tensor_type.name == blocks
    with WeightLoader(target) as loader:
        ours = loader[Q].numpy()
    # The codes' largest step: of a scale, as the values' range says it
    span = ours.max() - ours.min()
    assert np.abs(values(tensor) - ours).max() <= steps * span / (254 if blocks == "Q8_0" else 7)


def test_requantize_takes_the_original_s_values_where_they_are_given(source: Path, tmp_path: Path) -> None:
    target = dataset_of(source, tmp_path / "dataset", quant_type="int2")
    original = load_file(source / "model.safetensors")[Q].numpy()

    def error(**options: Any) -> float:
        out = tmp_path / f"out-{len(options)}"
        found = values(export(target, out, requantize=True, **options)[IN_GGUF])
        return float(np.square(found - original).mean())

    assert error(source=source) < error() / 5


def test_a_source_without_requantize_is_a_mistake(source: Path, tmp_path: Path) -> None:
    target = dataset_of(source, tmp_path / "dataset")
    with pytest.raises(InvalidConfig, match="source"):
        export_dataset(target, tmp_path / "out", ExportOptions("gguf", source=source))
    with pytest.raises(InvalidConfig, match="activations"):
        export_dataset(target, tmp_path / "out", ExportOptions("gguf", activations="int8"))


def changed(source: Path, folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    """A copy of the model with another Q."""
    model = shutil.copytree(source, folder)
    weights = load_file(source / "model.safetensors")
    weights[Q] = change(weights[Q])
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    return model


def with_row(factor: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(weight: torch.Tensor) -> torch.Tensor:
        weight[7] *= factor
        return weight

    return change


@pytest.mark.parametrize("factor", [1e-9, 1e-30, 1e9])
@pytest.mark.parametrize(
    "layer",
    [
        {"quant_type": "int8"},
        {"quant_type": "int4", "symmetric": False},
        {"quant_type": "int2"},
        {"quant_type": "int8", "symmetric": False, "per_channel": True},
    ],
    ids=str,
)
def test_scales_that_fp16_does_not_hold_are_refused_and_decoded_where_asked_for(
    layer: dict[str, Any], factor: float, source: Path, tmp_path: Path
) -> None:
    model = changed(source, tmp_path / "model", with_row(factor))
    target = dataset_of(model, tmp_path / "dataset", **layer)
    with pytest.raises(InvalidConfig, match=re.escape(Q)):
        export(target, tmp_path / "out")
    tensor = export(target, tmp_path / "out", requantize=True)[IN_GGUF]
    assert tensor.tensor_type.name == "F32"
    with WeightLoader(target) as loader:
        assert np.array_equal(values(tensor), loader[Q].numpy())
    tensor = export(target, tmp_path / "of-source", requantize=True, source=model)[IN_GGUF]
    assert np.array_equal(values(tensor), load_file(model / "model.safetensors")[Q].numpy())


def test_what_is_quantized_anew_has_scales_that_fp16_holds(source: Path, tmp_path: Path) -> None:
    """A block of 32 within a group of 48 may have a smaller scale than any that is stored."""

    def change(weight: torch.Tensor) -> torch.Tensor:
        weight[:, 96:128] *= 1e-4
        return weight

    model = changed(source, tmp_path / "model", change)
    target = dataset_of(model, tmp_path / "dataset", quant_type="int8", group_size=48)
    tensor = export(target, tmp_path / "out", requantize=True, source=model)[IN_GGUF]
    assert tensor.tensor_type.name == "Q8_0"
    original = load_file(model / "model.safetensors")[Q].numpy()
    blocks = np.array(tensor.data).reshape(len(original), -1, 34)
    scales = blocks[..., :2].copy().view(np.float16).astype(np.float64).repeat(32, -1).reshape(original.shape)
    assert (np.abs(values(tensor) - original) <= 0.501 * scales).all()
    assert scales[:, 96].max() < 1e-5


@pytest.mark.parametrize(
    ("change", "layer"),
    [
        (lambda weight: weight * torch.where(torch.arange(256) // 32 == 3, 1e-9, 1.0), {"group_size": 48}),
        (
            lambda weight: torch.where(torch.arange(256) // 32 == 3, 30 + weight * 1e-3, weight),
            {"symmetric": False, "group_size": 48},
        ),
    ],
    ids=["too small", "far from zero"],
)
def test_what_no_block_has_once_it_is_quantized_anew_ends_the_export_and_names_the_layer(
    change: Callable[[torch.Tensor], torch.Tensor], layer: dict[str, Any], source: Path, tmp_path: Path
) -> None:
    model = changed(source, tmp_path / "model", change)
    target = dataset_of(model, tmp_path / "dataset", quant_type="int4", **layer)
    with pytest.raises(UnquantizableWeights, match=f"{Q}.*mixed_precision_layers"):
        export(target, tmp_path / "out", requantize=True, source=model)
    assert not (tmp_path / "out/export.json").exists()
    kept = dataset_of(model, tmp_path / "kept", quant_type="fp16")  # as it says
    assert values(export(kept, tmp_path / "of-kept")[IN_GGUF]).shape == (128, 256)


@pytest.mark.parametrize("value", [1e39, 1e-45, -1e300])
def test_float64_values_that_float32_has_not_end_the_export(
    value: float, source: Path, tmp_path: Path
) -> None:
    def change(weight: torch.Tensor) -> torch.Tensor:
        wide = weight.double()
        wide[3, 5] = value
        return wide

    model = changed(source, tmp_path / "model", change)
    target = dataset_of(model, tmp_path / "dataset", quant_type="fp16")
    with pytest.raises(UnquantizableWeights, match=f"{Q}.*no float64"):
        export(target, tmp_path / "out")


def test_every_layer_that_cannot_be_written_is_in_one_error(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "dataset"
    ArrowQuantizer(QuantizationConfig("int3", mixed_precision_layers=["mlp"])).quantize(source, target)
    with pytest.raises(ArrowQuantError, match=r"int3 \(.*self_attn.*and 1 more\)"):
        export(target, tmp_path / "out")


def test_a_layer_of_another_architecture_is_refused_by_name(source: Path, tmp_path: Path) -> None:
    model = shutil.copytree(source, tmp_path / "model")
    weights = load_file(source / "model.safetensors")
    weights["model.layers.0.self_attn.sinks"] = weights["model.norm.weight"].clone()
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ArrowQuantError, match=r"layer model\.layers\.0\.self_attn\.sinks is not known.*compressed"
    ):
        export(dataset_of(model, tmp_path / "dataset"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
