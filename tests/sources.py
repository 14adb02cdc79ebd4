"""Small checkpoints that tests quantize, written by the safetensors package and not by ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file


def save_checkpoint(folder: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """Writes these tensors to `folder`/model.safetensors, and returns the folder as a URI."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / "model.safetensors")
    return str(folder)


def random_weights(layers: int, rows: int, columns: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """`layers` seeded Gaussian matrices and as many norms."""
    generator = torch.Generator().manual_seed(layers)
    weights: dict[str, torch.Tensor] = {}
    for i in range(layers):
        weights[f"layers.{i}.weight"] = (torch.randn(rows, columns, generator=generator) * 0.02).to(dtype)
        weights[f"layers.{i}.norm.weight"] = torch.ones(columns, dtype=dtype)
    return weights
