"""A checkpoint of codes that is imported unchanged and exported again is the original checkpoint, and codes of other
quantizers are served as those of compressed-tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from safetensors.torch import load_file, save_file

from arrowquant_dist import QuantizationConfig
from arrowquant_dist.driver import plan_only, quantize
from tests.checkpoint.word_models import Words
from tests.encodings.test_packed import INTEGERS, PACKED, scale_shape
from tests.export.models import DTYPES, RUN, as_decoded, difference, exported, opened, small_llama

KEEP = QuantizationConfig(keep_codes=True)
INT8_ACTIVATIONS = {
    "num_bits": 8,
    "type": "int",
    "symmetric": True,
    "dynamic": True,
    "strategy": "token",
}
SCHEMES: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    "w4": (PACKED, {"num_bits": 4, "symmetric": True, "strategy": "group", "group_size": 64}, None),
    "w4 channel": (PACKED, {"num_bits": 4, "symmetric": True, "strategy": "channel"}, None),
    "w4 zeros": (PACKED, {"num_bits": 4, "symmetric": False, "strategy": "group", "group_size": 32}, None),
    "w8": (PACKED, {"num_bits": 8, "symmetric": True, "strategy": "channel"}, None),
    "w8 group": (PACKED, {"num_bits": 8, "symmetric": True, "strategy": "group", "group_size": 64}, None),
    "w2": (PACKED, {"num_bits": 2, "symmetric": True, "strategy": "group", "group_size": 32}, None),
    "w8a8": (INTEGERS, {"num_bits": 8, "symmetric": True, "strategy": "channel"}, INT8_ACTIVATIONS),
}


def compressed_llama(
    folder: Path, scheme: str, dtype: str
) -> tuple[dict[str, torch.Tensor], dict[str, Any], Any]:
    """A model whose Linears but lm_head are as the library compresses them: stored tensors, its quantization_config,
    and the model that these were made from."""
    form, weights, activations = SCHEMES[scheme]
    model = small_llama(dtype)
    group = {"targets": ["Linear"], "weights": {"type": "int", **weights}, "input_activations": activations}
    made = QuantizationScheme(**group)
    generator = torch.Generator().manual_seed(11)
    stored = {}
    for name, tensor in model.state_dict().items():
        if not name.endswith("_proj.weight"):
            stored[name] = tensor
            continue
        grid = scale_shape(tuple(tensor.shape), weights)
        step = tensor.abs().max() / (1 << (weights["num_bits"] - 1))
        state = {
            "weight": tensor,
            "weight_scale": ((0.7 + 0.3 * torch.rand(grid, generator=generator)) * step).to(DTYPES[dtype]),
        }
        if not weights["symmetric"]:
            state["weight_zero_point"] = torch.randint(-2, 3, grid, generator=generator).to(torch.int8)
        parts = BaseCompressor.get_value_from_registry(form).compress(state, made)
        stored |= {name.replace("weight", part): value for part, value in parts.items()}
    quantization = {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": {**group, "format": form}},
        "ignore": ["lm_head"],
    }
    save(folder, stored, model, quantization)
    return stored, quantization, model


def save(folder: Path, stored: Mapping[str, torch.Tensor], model: Any, quantization: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    contiguous = {name: tensor.contiguous() for name, tensor in stored.items()}
    save_file(contiguous, folder / "model.safetensors", {"format": "pt"})
    dtype = str(model.dtype).removeprefix("torch.")
    config = {
        **model.config.to_dict(),
        "architectures": [type(model).__name__],
        "dtype": dtype,
        "quantization_config": quantization,
    }
    (folder / "config.json").write_text(json.dumps(config, default=str))


@pytest.mark.parametrize(
    ("scheme", "dtype"),
    [*((scheme, "bfloat16") for scheme in SCHEMES), ("w4", "float16"), ("w8a8", "float16")],
)
def test_imported_and_exported_it_has_the_same_bytes(tmp_path: Path, scheme: str, dtype: str) -> None:
    stored, quantization, _ = compressed_llama(tmp_path / "source", scheme, dtype)
    quantize(str(tmp_path / "source"), str(tmp_path / "dataset"), KEEP, RUN)
    out, activations = tmp_path / "out", SCHEMES[scheme][2]
    exported(str(tmp_path / "dataset"), out, activations="int8" if activations else None)
    found = {name: tensor for file in out.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert found.keys() == stored.keys()
    for name, tensor in stored.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(found[name].view(torch.uint8), tensor.contiguous().view(torch.uint8)), name
    config = json.loads((out / "config.json").read_bytes())["quantization_config"]
    (group,) = config["config_groups"].values()
    (own,) = quantization["config_groups"].values()
    for key in ("num_bits", "symmetric", "strategy"):
        assert group["weights"][key] == own["weights"][key]
    assert group["weights"].get("group_size") == own["weights"].get("group_size")
    assert group["format"] == own["format"]


@pytest.mark.parametrize(
    ("mlp", "given_back"),
    [({"num_bits": 4, "strategy": "channel"}, False), (None, True)],
    ids=["mixed", "w8a8"],
)
def test_activations_that_a_dataset_does_not_say_are_told_of_by_name_when_codes_are_kept(
    tmp_path: Path,
    mlp: dict[str, Any] | None,
    given_back: bool,  # noqa: FBT001
) -> None:
    """W8A8, or W8A8 beside W4A16, which an export writes as weights alone."""
    stored, quantization, model = compressed_llama(tmp_path / "w8a8", "w8a8", "bfloat16")
    if mlp is not None:
        packed, _, _ = compressed_llama(tmp_path / "w4", "w4 channel", "bfloat16")
        stored = {name: value for name, value in stored.items() if ".mlp." not in name}
        stored |= {name: value for name, value in packed.items() if ".mlp." in name}
        (group,) = quantization["config_groups"].values()
        weights = {"type": "int", "symmetric": True, **mlp}
        quantization["config_groups"] = {
            "group_0": {**group, "targets": ["re:.*self_attn.*"]},
            "group_1": {"targets": ["Linear"], "weights": weights, "format": PACKED},
        }
        quantization["format"] = "mixed-precision"
    save(tmp_path / "source", stored, model, quantization)
    source, target = str(tmp_path / "source"), str(tmp_path / "dataset")
    (note,) = [note for note in plan_only(source, target, KEEP, RUN).notes if "activations" in note]
    modules = sorted(
        name.removesuffix("_scale").removesuffix(".weight") for name in stored if name.endswith("_scale")
    )
    quantized = [name for name in modules if mlp is None or ".mlp." not in name]
    assert len(quantized) == (14 if given_back else 8)
    assert (
        f"activations become int8 too while the source runs, which a dataset does not record: {quantized[0]}"
        in note
    )
    assert f"and {len(quantized) - 5} more" in note
    assert ("export --activations int8` adds the activations" in note) == given_back
    quantize(source, target, KEEP, RUN)
    exported(target, tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_bytes())["quantization_config"]
    assert not any("input_activations" in group for group in config["config_groups"].values())
    decoded = plan_only(source, str(tmp_path / "other"), QuantizationConfig("int8"), RUN)
    assert not any("activations" in note for note in decoded.notes)


@pytest.mark.parametrize("form", ["gptq", "awq"])
def test_symmetric_words_are_served_as_compressed_tensors(tmp_path: Path, form: str) -> None:
    """Transformers computes with the values that the source stands for."""
    model = small_llama("float16")
    stored = {}
    for name, tensor in model.state_dict().items():
        if not name.endswith("_proj.weight"):
            stored[name] = tensor
            continue
        made = Words.random(tuple(tensor.shape), 4, 32, seed=len(stored))
        made.zeros[:] = 8
        made.scales[:] = (made.scales.astype(np.float32) * float(tensor.abs().max()) * 8).astype(np.float16)
        module = name.removesuffix(".weight")
        stored |= made.gptq(module) if form == "gptq" else made.awq(module)
    save(tmp_path / "source", stored, model, {"quant_method": form, "bits": 4, "group_size": 32})
    dataset, out = tmp_path / "dataset", tmp_path / "out"
    quantize(str(tmp_path / "source"), str(dataset), KEEP, RUN)
    exported(str(dataset), out)
    assert difference(opened(out), as_decoded(model, str(dataset))) <= 1e-3
