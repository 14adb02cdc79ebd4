"""Matrices of random codes, and the values that these stand for by plain arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from arrowquant_dist.modules import QuantWeight
from arrowquant_dist.tensor import QuantizedTensor
from tests.kernels.reference import group_slices, limits, packed_row


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix. Tests share it and must not change it.

    packed: the matrix as a loader gives it. values: float32 [rows, columns], (code - zero point) · scale with a
    rounding per operation.
    """

    packed: QuantizedTensor
    values: np.ndarray

    @property
    def weight(self) -> QuantWeight:
        return QuantWeight.of(self.packed)

    @property
    def decoded(self) -> torch.Tensor:
        return torch.from_numpy(self.values.copy())


@cache
def random_matrix(
    rows: int, columns: int, bits: int, group_size: int = 0, zeros: str = "none", seed: int = 0, axis: int = 0
) -> Matrix:
    """A random matrix. zeros: none, whole, real, or far (larger than any code). axis: -1: one scale for the matrix."""
    random = np.random.default_rng(seed)
    low, high = limits(bits)
    codes = random.integers(low, high + 1, (rows, columns))
    slices = group_slices(columns, group_size)
    shape = (1,) if axis < 0 else (rows, len(slices))
    scales = random.uniform(0.001, 0.1, shape).astype(np.float32)
    points = {
        "none": np.empty(0),
        "whole": random.integers(low, high + 1, shape),
        "real": random.uniform(low, high, shape),
        "far": random.uniform(1000, 2000, shape),
    }[zeros].astype(np.float32)
    values = np.empty((rows, columns), np.float32)
    for k, part in enumerate(slices):
        scale = scales[0] if axis < 0 else scales[:, k : k + 1]
        values[:, part] = codes[:, part].astype(np.float32)
        if points.size:
            values[:, part] -= points[0] if axis < 0 else points[:, k : k + 1]
        values[:, part] *= scale
    data = np.frombuffer(b"".join(packed_row(row, bits) for row in codes.tolist()), np.uint8)
    packed = QuantizedTensor(
        (rows, columns),
        "float32",
        f"int{bits}",
        data,
        scales.reshape(-1),
        points.reshape(-1),
        axis,
        0 if axis < 0 else group_size,
    )
    return Matrix(packed, values)


def error(
    product: torch.Tensor, values: torch.Tensor, decoded: torch.Tensor, bias: torch.Tensor | None = None
) -> float:
    """The largest error against the product in float64, relative to the sum of the magnitudes that were added."""
    rows, wide = values.double().reshape(-1, values.shape[-1]), decoded.double()
    exact, size = rows @ wide.T, rows.abs() @ wide.abs().T
    if bias is not None:
        exact, size = exact + bias.detach().double(), size + bias.detach().double().abs()
    difference = (product.detach().double().reshape(exact.shape) - exact).abs()
    return float((difference / size.clamp_min(1e-300)).max()) if difference.numel() else 0.0
