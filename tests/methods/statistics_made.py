"""Makes statistics of a layer's inputs like those of a calibration, and folders of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from tests.sources import save_checkpoint

Parts = dict[str, np.ndarray]


def statistics(rows: int, columns: int, seed: int = 0, *, corrected: bool = False) -> Parts:
    """{part: float32 array}. corrected: with cross and residual, for inputs that are off by a tenth."""
    rng = np.random.default_rng(seed)
    spread = rng.standard_normal((columns, columns)) * np.geomspace(1.0, 0.05, columns)
    inputs = rng.standard_normal((2 * columns + 8, columns)) @ spread
    parts = {"hessian": inputs.T @ inputs / len(inputs)}
    if corrected:
        original = inputs + 0.1 * rng.standard_normal(inputs.shape)
        stream = 0.1 * rng.standard_normal((len(inputs), rows))
        parts |= {"cross": original.T @ inputs / len(inputs), "residual": stream.T @ inputs / len(inputs)}
    return {part: found.astype(np.float32) for part, found in parts.items()}


def save_statistics(folder: Path, layers: Mapping[str, Parts]) -> str:
    """Writes a finished folder of statistics with {layer: parts}, and returns it."""
    tensors = {f"{layer}.{part}": found for layer, parts in layers.items() for part, found in parts.items()}
    save_checkpoint(folder, {name: torch.from_numpy(found.copy()) for name, found in tensors.items()})
    (folder / "calibration.json").write_text(json.dumps({"format_version": 2, "weights": {}}))
    return str(folder)
