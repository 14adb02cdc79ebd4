"""Rows whose codes are kept from the source, on their way from the reader to a QuantizedTensor: one piece of memory
that holds scales, zero points if there are any, and codes, in this order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.tensor.quantized import QuantizedTensor, row_nbytes
from arrowquant_dist.tensor.source import matrix_shape

_NUMBER_NBYTES = 4  # float32


@dataclass(frozen=True, slots=True, eq=False)
class KeptRows:
    """Views of that memory.

    scales, zero_points: float32 [rows, groups], or [1, 1] for a spec with one scale for the tensor; zero_points are
    [0, groups] if symmetric. codes: uint8 [rows, row bytes], packed as in V2's `data`."""

    scales: np.ndarray
    zero_points: np.ndarray
    codes: np.ndarray

    @classmethod
    def of(cls, memory: np.ndarray, matrix: tuple[int, int], spec: QuantSpec) -> KeptRows:
        """memory: uint8 [kept_nbytes(matrix, spec)], aligned to 4 bytes. matrix: (rows, columns)."""
        scale_rows, groups, width = _sizes(matrix, spec)
        first = scale_rows * groups * _NUMBER_NBYTES
        second = first if spec.symmetric else 2 * first
        return cls(
            memory[:first].view(np.float32).reshape(-1, groups),
            memory[first:second].view(np.float32).reshape(-1, groups),
            memory[second:].reshape(matrix[0], width),
        )


def kept_nbytes(matrix: tuple[int, int], spec: QuantSpec) -> int:
    """Size of the rows' memory in bytes. matrix: (rows, columns), at least one of each."""
    scale_rows, groups, width = _sizes(matrix, spec)
    numbers = 1 if spec.symmetric else 2
    return numbers * scale_rows * groups * _NUMBER_NBYTES + matrix[0] * width


def kept_tensor(memory: np.ndarray, shape: tuple[int, ...], dtype: str, spec: QuantSpec) -> QuantizedTensor:
    """The rows as a tensor that shares their memory. Nothing is measured: its values are the source's."""
    kept = KeptRows.of(memory, matrix_shape(shape, spec.row_dims), spec)
    return QuantizedTensor(
        shape,
        dtype,
        spec.quant_type,
        kept.codes.reshape(-1),
        kept.scales.reshape(-1),
        kept.zero_points.reshape(-1),
        spec.quant_axis,
        spec.stored_group_size,
        spec.row_dims,
    )


def _sizes(matrix: tuple[int, int], spec: QuantSpec) -> tuple[int, int, int]:
    """(rows of scales, scales in a row, bytes of a row of codes). None of them depends on the source's dtype."""
    rows, columns = matrix
    groups = spec.groups_per_row(columns)
    return rows if groups else 1, groups or 1, row_nbytes(spec.quant_type, columns, "float32")
