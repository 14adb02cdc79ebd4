"""Compares the values of a WeightLoader with those of the tests' own decoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from arrowquant_dist import WeightLoader
from tests.fuzz.decoder import DecodedLayer, bits_dtype

BUDGET_NBYTES = 1 << 28


def check_loader(target: Path, layers: dict[str, DecodedLayer]) -> None:
    """Asserts that a loader gives the decoder's values for every name."""
    with WeightLoader(str(target), memory_budget=BUDGET_NBYTES) as loader:
        assert set(loader.keys()) == layers.keys()
        seen: dict[str, None] = {}
        for name, tensor in loader:
            assert name not in seen
            seen[name] = None
            layer = layers[name]
            assert tuple(tensor.shape) == layer.shape
            assert str(tensor.dtype) == f"torch.{layer.dtype}"
            assert same_bits(raw(tensor), layer), name
        assert seen.keys() == layers.keys()


def same_bits(found: bytes, layer: DecodedLayer) -> bool:
    """Whether the bits are the same. Decoded zeros may differ in their sign, because of 0 · -scale."""
    expected = layer.bits()
    if found == expected:
        return True
    a, b = (np.frombuffer(data, bits_dtype(layer.dtype)) for data in (found, expected))
    return layer.dtype.startswith("float") and bool((a == b).all())


def raw(tensor: torch.Tensor) -> bytes:
    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
