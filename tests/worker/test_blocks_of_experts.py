"""Rows in several dimensions, cut into blocks: codes and scales are those of the whole layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig, WeightLoader, quantize_tensor
from arrowquant_dist.config import LayerOverride
from arrowquant_dist.verify import verify
from tests.fuzz.decoder import read_dataset

NAME = "model.layers.0.mlp.experts.gate_up_proj"
CONFIGS = {
    "a scale a row": QuantizationConfig(),
    "groups": QuantizationConfig("int4", per_channel=False, group_size=32, symmetric=False),
    "a scale a tensor": QuantizationConfig("int8", per_channel=False, group_size=0),
    "int3 by mse": QuantizationConfig("int3", per_channel=False, group_size=64),
}


@pytest.mark.parametrize("shape", [(5, 100, 150), (3, 2, 60, 150)], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_experts_larger_than_a_block_are_what_they_are_in_one_piece(
    tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    """A block has its rows in one dimension, [n, columns], and is quantized by them."""
    config = CONFIGS[name].replace(overrides=[LayerOverride("*", row_dims=len(shape) - 1)])
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    save_file({NAME: weights}, tmp_path / "model.safetensors")
    run = RunConfig(block_bytes=1 << 16, engine="inline", workers=1)
    ArrowQuantizer(config, run).quantize(tmp_path / "model.safetensors", tmp_path / "out")
    layer = read_dataset(tmp_path / "out")[NAME]
    assert len(layer.blocks) > 3
    whole = quantize_tensor(weights, config, name=NAME)
    decoded = np.frombuffer(layer.bits(), np.float32).reshape(shape)
    assert (decoded == whole.dequantize(torch.float32).numpy()).all()
    assert abs(decoded - weights.numpy()).max() < 1.5
    scales = np.concatenate([block.scales for block in layer.blocks if block.scales is not None])
    assert len(np.unique(scales)) == len(np.unique(whole.scales))
    with WeightLoader(tmp_path / "out") as loader:
        assert (loader[NAME].numpy() == decoded).all()
        assert (loader.read(NAME, rows=slice(1, 3)).numpy() == decoded[1:3]).all()
    assert verify(tmp_path / "out").is_sound
