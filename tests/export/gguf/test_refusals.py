"""What GGUF cannot hold is refused by layer before anything is written, and made to fit where that is asked for."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from arrowquant_dist import ArrowQuantizer, ExportOptions, QuantizationConfig, WeightLoader, export_dataset
from arrowquant_dist.errors import ArrowQuantError, InvalidConfig
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
    "int2 in small groups": ({"quant_type": "int2"}, "int2 in groups of 32, no multiple of 256"),
    "int2 with zero points": ({"quant_type": "int2", "symmetric": False}, "int2 with zero points"),
    "int4 in groups of 48": (
        {"quant_type": "int4", "group_size": 48},
        "int4 in groups of 48, no multiple of 32",
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


@pytest.mark.parametrize(("factor", "kept"), [(1e-9, "Q8_0"), (1e9, "F32")])
def test_scales_that_fp16_does_not_hold_are_refused_and_rounded_or_decoded_where_asked_for(
    factor: float, kept: str, source: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(source, tmp_path / "model")
    weights = load_file(source / "model.safetensors")
    weights[Q][7] *= factor
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    target = dataset_of(model, tmp_path / "dataset")
    with pytest.raises(InvalidConfig, match=rf"scales that fp16.*does not hold \({re.escape(Q)}\)"):
        export(target, tmp_path / "out")
    tensor = export(target, tmp_path / "out", requantize=True)[IN_GGUF]
    assert tensor.tensor_type.name == kept
    with WeightLoader(target) as loader:
        ours = loader[Q].numpy()
    assert values(tensor) == pytest.approx(ours, rel=2e-3, abs=1e-6)


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
