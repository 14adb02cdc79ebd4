"""float8 weights with scales are one layer of the values they stand for, decoded as torch decodes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from arrowquant_dist import QuantizationConfig
from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.checkpoint.reader import SourceReader
from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.config import RunConfig
from arrowquant_dist.driver import quantize
from tests.datasets import weights_of

Tensors = dict[str, torch.Tensor]
BLOCK = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def float8(*shape: int, dtype: torch.dtype = torch.float8_e4m3fn) -> torch.Tensor:
    """Every finite code at least once where there is room."""
    codes = torch.arange(int(np.prod(shape)), dtype=torch.int64) * 7919 % 256
    values = codes.to(torch.uint8).view(dtype).float()
    return torch.nan_to_num(values, nan=1.5, posinf=2.5, neginf=-2.5).to(dtype).reshape(shape)


def scales(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(len(shape))) * 0.01 + 1e-4


def save_model(
    folder: Path, tensors: Tensors, quantization: dict[str, Any] | None, **config: Any
) -> Checkpoint:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    if quantization is not None:
        (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    return open_checkpoint(str(folder))


def values_of(checkpoint: Checkpoint) -> Tensors:
    """{name: decoded tensor} of all layers."""
    with SourceReader(files=checkpoint.files) as reader:
        found = reader.read([(layer, 0, layer.num_params) for layer in checkpoint.layers])
    return {
        layer.name: torch.frombuffer(bytearray(values.tobytes()), dtype=getattr(torch, layer.dtype)).reshape(
            layer.shape
        )
        for layer, values in zip(checkpoint.layers, found, strict=True)
    }


def by_blocks(weight: torch.Tensor, scale: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The reference: float32 product, rounded to bfloat16."""
    spread = scale.float().repeat_interleave(rows, -2).repeat_interleave(columns, -1)
    return (weight.float() * spread[..., : weight.shape[-2], : weight.shape[-1]]).to(torch.bfloat16)


@pytest.mark.parametrize("shape", [(256, 384), (130, 200), (1, 7), (129, 128)])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_scale_each_block_as_deepseek_has_it(
    tmp_path: Path, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    weight, scale = float8(*shape, dtype=dtype), scales(-(-shape[0] // 128), -(-shape[1] // 128))
    tensors = {"a.weight": weight, "a.weight_scale_inv": scale, "norm.weight": torch.ones(5)}
    checkpoint = save_model(tmp_path, tensors, BLOCK)
    found = values_of(checkpoint)
    assert found.keys() == {"a.weight", "norm.weight"}
    assert checkpoint.decoded == {"a.weight_scale_inv": "a.weight"}
    assert torch.equal(found["a.weight"], by_blocks(weight, scale, 128, 128))


def test_the_layer_is_what_a_bfloat16_checkpoint_has(tmp_path: Path) -> None:
    weight, scale = float8(300, 500), scales(3, 4)
    tensors = {"a.weight": weight, "a.weight_scale_inv": scale, "norm.weight": torch.ones(5)}
    save_model(tmp_path / "fp8", tensors, BLOCK)
    save_model(
        tmp_path / "bf16",
        {"a.weight": by_blocks(weight, scale, 128, 128), "norm.weight": torch.ones(5)},
        None,
    )
    config, run = (
        QuantizationConfig("int4", per_channel=False),
        RunConfig(engine="inline", block_bytes=64 << 10),
    )
    for name in ("fp8", "bf16"):
        quantize(str(tmp_path / name), str(tmp_path / f"{name}-int4"), config, run)
    assert weights_of(tmp_path / "fp8-int4") == weights_of(tmp_path / "bf16-int4")
    assert len(weights_of(tmp_path / "fp8-int4")) > 4  # rows were cut inside of scale blocks
