"""Small quantized checkpoints on disk, and the values that are read from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.checkpoint.reader import SourceReader
from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.dtypes import DTYPES

Tensors = dict[str, torch.Tensor]


def save_model(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    quantization: dict[str, Any] | None = None,
    **config: Any,
) -> Checkpoint:
    """Saves the tensors in one file, with a config.json if there is anything to put into it, and opens the
    checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    if quantization is not None:
        config = {**config, "quantization_config": quantization}
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return open_checkpoint(str(folder))


def values_of(checkpoint: Checkpoint) -> Tensors:
    """{name: tensor} of all layers, read together."""
    with SourceReader(files=checkpoint.files) as reader:
        found = reader.read([(layer, 0, layer.num_params) for layer in checkpoint.layers])
    return {
        layer.name: _tensor(values, layer.dtype).reshape(layer.shape)
        for layer, values in zip(checkpoint.layers, found, strict=True)
    }


def assert_slices(checkpoint: Checkpoint, name: str, slices: list[tuple[int, int]]) -> None:
    """Asserts that slices of a layer, read together, are those of its values."""
    (layer,) = (layer for layer in checkpoint.layers if layer.name == name)
    whole = _bits(values_of(checkpoint)[name]).numpy().tobytes()
    itemsize = DTYPES[layer.dtype].itemsize
    with SourceReader(files=checkpoint.files) as reader:
        found = reader.read([(layer, start, stop) for start, stop in slices])
    for (start, stop), values in zip(slices, found, strict=True):
        assert values.tobytes() == whole[start * itemsize : stop * itemsize], (start, stop)


def assert_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Asserts the same shape, dtype and bits."""
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert torch.equal(_bits(found), _bits(expected.contiguous()))


def float8(*shape: int, dtype: torch.dtype = torch.float8_e4m3fn) -> torch.Tensor:
    """A tensor with every finite code, as far as there is room."""
    codes = torch.arange(int(np.prod(shape))) * 7919 % 256
    values = codes.to(torch.uint8).view(dtype).float()
    return torch.nan_to_num(values, nan=1.5, posinf=2.5, neginf=-2.5).to(dtype).reshape(shape)


def scales(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(len(shape))) * 0.01 + 1e-4


def by_blocks(weight: torch.Tensor, scale: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The reference for block scales: the float32 product, rounded to bfloat16."""
    spread = scale.float().repeat_interleave(rows, -2).repeat_interleave(columns, -1)
    return (weight.float() * spread[..., : weight.shape[-2], : weight.shape[-1]]).to(torch.bfloat16)


def _tensor(values: np.ndarray, dtype: str) -> torch.Tensor:
    return torch.from_numpy(values.copy()).view(getattr(torch, dtype))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)
