"""Rows of a matrix, packed as V2 stores them, in tensors of torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from arrowquant_dist.tensor.source import read_only


@dataclass(frozen=True, slots=True, eq=False)
class PackedRows:
    """Packed rows that stand for values [rows, columns]: (code - zero point) · scale.

    codes: uint8 [rows, bytes per row], `bits` bits per code. group_size: number of values of a row that share a scale,
    at least 1. scales, zero_points: float32 [rows, groups]; zero_points is [rows, 0] if symmetric. All are on one
    device.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor
    bits: int
    group_size: int
    columns: int

    def __len__(self) -> int:
        return self.codes.shape[0]

    def part(self, start: int, stop: int) -> PackedRows:
        """Returns rows [start, stop), in the same memory."""
        return PackedRows(
            self.codes[start:stop],
            self.scales[start:stop],
            self.zero_points[start:stop],
            self.bits,
            self.group_size,
            self.columns,
        )

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns codes, scales and zero points as the kernels take them, in the same memory. Only on the CPU."""
        codes, scales, zero_points = (
            read_only(tensor.numpy()) for tensor in (self.codes, self.scales, self.zero_points)
        )
        return codes, scales, zero_points
