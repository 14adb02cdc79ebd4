"""A model quantized by GPTQ, AWQ, MLX or bitsandbytes becomes the dataset of the full-precision release."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from arrowquant_dist import QuantizationConfig, WeightLoader
from arrowquant_dist.config import RunConfig
from arrowquant_dist.driver import quantize
from tests.checkpoint.quantized_models import Tensors
from tests.checkpoint.word_models import Words
from tests.datasets import weights_of
from tests.encodings.test_affine import affine
from tests.encodings.test_llm_int8 import int8

RUN = RunConfig(engine="inline", block_bytes=64 << 10)
Made = tuple[
    Tensors, torch.Tensor, dict[str, object]
]  # stored tensors of a module, its weight, keys of config.json


def _gptq(name: str) -> Made:
    made = Words.random((160, 256), 4, 64, by_activation=True, seed=len(name))
    config = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": True, "sym": False}
    return made.gptq(name), made.weight(), {"quantization_config": config}


def _awq(name: str) -> Made:
    made = Words.random((160, 256), 4, 64, seed=len(name))
    config = {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": True}
    return made.awq(name), made.weight(), {"quantization_config": config}


def _mlx(name: str) -> Made:
    tensors, weight = affine(4, 128, (160,), name)
    config = {"group_size": 128, "bits": 4, "mode": "affine"}
    return tensors, weight.half(), {"quantization": config, "quantization_config": config}


def _bitsandbytes(name: str) -> Made:
    tensors, weight = int8(name)
    return (
        tensors,
        weight.half(),
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
    )


class Block(torch.nn.Module):
    """What the full-precision release has."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(inputs, bias=False)
        self.up = torch.nn.Linear(inputs, outputs)
        self.gate = torch.nn.Linear(inputs, outputs, bias=False)


@pytest.mark.parametrize("make", [_gptq, _awq, _mlx, _bitsandbytes], ids=lambda make: make.__name__[1:])
def test_the_dataset_is_that_of_the_full_precision_release(
    tmp_path: Path, make: Callable[[str], Made]
) -> None:
    """Its parts lie in two files; its config and its row blocks, those of a release without codes."""
    stored: Tensors = {}
    plain: Tensors = {}
    for name in ("up", "gate"):
        tensors, plain[f"{name}.weight"], keys = make(name)
        stored |= tensors
    outputs, inputs = plain["up.weight"].shape
    rest = {"norm.weight": torch.rand(inputs).half(), "up.bias": torch.rand(outputs).half()}
    _save(tmp_path / "codes", {**stored, **rest}, keys)
    _save(tmp_path / "plain", {**plain, **rest}, {})

    for quant_type in ("fp16", "int8"):
        for source in ("codes", "plain"):
            target = tmp_path / f"{source}-{quant_type}"
            quantize(str(tmp_path / source), str(target), QuantizationConfig(quant_type), RUN)
            assert json.loads((target / "config.json").read_bytes()) == {"torch_dtype": "float16"}
        codes, release = (weights_of(tmp_path / f"{source}-{quant_type}") for source in ("codes", "plain"))
        assert codes == release
        assert {name for name, _ in codes} == {*plain, *rest}

    model = Block(outputs, inputs).half()
    WeightLoader(str(tmp_path / "codes-fp16")).load_into(model)
    for name, tensor in {**plain, **rest}.items():
        assert torch.equal(model.state_dict()[name], tensor), name


def _save(folder: Path, tensors: Tensors, config: dict[str, object]) -> None:
    """Every other tensor in a second file, with an index."""
    folder.mkdir()
    files = {
        "model-00001-of-00002.safetensors": [*tensors][::2],
        "model-00002-of-00002.safetensors": [*tensors][1::2],
    }
    for file, names in files.items():
        save_file({name: tensors[name].contiguous() for name in names}, folder / file)
    weight_map = {name: file for file, names in files.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps({"torch_dtype": "float16", **config}))
