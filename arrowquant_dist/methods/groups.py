"""Scales by row or group: the arrays that the kernels which choose them read and fill."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.methods.method import Found
from arrowquant_dist.metrics import ErrorSums


@dataclass(frozen=True, slots=True, eq=False)
class GroupArrays:
    """The arguments shared by all kernels of kernels/quantize.py that work by row or group, in their order.

    group: number of values in a group, at most all columns. taken: inputs: bits, group, qmin, qmax, bits per code.
    filled: outputs: codes, scales, zero points, scratch for a row's codes, error sums.
    """

    group: int
    taken: tuple[Any, ...]
    filled: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, bits: np.ndarray, spec: QuantSpec, codes: np.ndarray) -> Self:
        """bits, codes: as in Method.quantize."""
        rows, columns = bits.shape
        groups = spec.groups_per_row(columns)
        group = columns if spec.per_channel else spec.group_size
        scales = np.empty((rows, groups), np.float32)
        zero_points = np.empty((rows, 0 if spec.symmetric else groups), np.float32)
        return cls(
            min(group, columns),
            (bits, group, *code_limits(spec), spec.bits),
            (codes, scales, zero_points, np.empty(columns, np.uint8), np.zeros(4)),
        )

    def found(self, bad_row: int) -> Found | None:
        """The method's result. bad_row: what the kernel returned: the first row with NaN or inf, or -1."""
        if bad_row >= 0:
            return None
        codes, scales, zero_points, scratch, sums = self.filled
        return Found(
            scales.reshape(-1), zero_points.reshape(-1), error_sums(codes.shape[0] * scratch.size, sums)
        )


def code_limits(spec: QuantSpec) -> tuple[np.float32, np.float32]:
    """(qmin, qmax) of signed codes."""
    return np.float32(-(1 << (spec.bits - 1))), np.float32((1 << (spec.bits - 1)) - 1)


def error_sums(count: int, sums: np.ndarray) -> ErrorSums:
    """sums: float64 [4] as filled by the kernels, over `count` values."""
    sum_w2, sum_d2, sum_e2, max_error = map(float, sums)
    return ErrorSums(count, sum_w2, sum_d2, sum_e2, max_error)
