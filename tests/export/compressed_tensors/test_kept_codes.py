"""A checkpoint of codes that is imported as it is, and exported again, is the checkpoint that it was; and codes of
other quantizers are served as compressed-tensors'."""

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
from arrowquant_dist.driver import quantize
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
