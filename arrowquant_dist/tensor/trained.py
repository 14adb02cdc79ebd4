"""Rows whose stored form was found before, by training: it comes in one piece of memory with the values that it is of,
and what is left to do is to measure it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from arrowquant_dist.arena import aligned
from arrowquant_dist.config import BITS, QuantSpec
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.metrics import ErrorSums
from arrowquant_dist.tensor.kept import kept_nbytes, kept_tensor
from arrowquant_dist.tensor.quantized import QuantizedTensor
from arrowquant_dist.tensor.source import as_float32, matrix_shape

_CHUNK = 1 << 20  # values that are measured at a time


def stored_nbytes(matrix: tuple[int, int], dtype: str, spec: QuantSpec) -> int:
    """Bytes of what is stored of rows: as `KeptRows` has them, or values of `dtype`. matrix: rows and columns."""
    return kept_nbytes(matrix, spec) if spec.is_quantized else matrix[0] * matrix[1] * DTYPES[dtype].itemsize


def trained_tensor(
    memory: np.ndarray, shape: tuple[int, ...], dtype: str, spec: QuantSpec
) -> QuantizedTensor:
    """memory: uint8, what is stored, and from the next aligned byte on the source's values, of `shape` and `dtype`,
    which it is measured against. The result shares it."""
    nbytes = stored_nbytes(matrix_shape(shape, spec.row_dims), dtype, spec)
    stored, values = memory[:nbytes], memory[aligned(nbytes) :]
    if spec.is_quantized:
        tensor = kept_tensor(stored, shape, dtype, spec)
    else:
        none = np.empty(0, np.float32)
        tensor = QuantizedTensor(shape, dtype, "none", stored, none, none, -1, 0, spec.row_dims)
    return replace(tensor, errors=_measured(values, tensor))


def _measured(values: np.ndarray, tensor: QuantizedTensor) -> ErrorSums:
    total = ErrorSums()
    rows, columns = tensor.matrix_shape
    itemsize = DTYPES[tensor.dtype].itemsize
    step = max(1, _CHUNK // max(1, columns))
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        original = _wide(values[start * columns * itemsize : stop * columns * itemsize], tensor.dtype)
        decoded = _decoded(tensor.rows(start, stop))
        error = original - decoded
        total += ErrorSums(
            original.size,
            float(original @ original),
            float(decoded @ decoded),
            float(error @ error),
            float(np.abs(error).max(initial=0.0)),
        )
    return total


def _decoded(rows: QuantizedTensor) -> np.ndarray:
    """float64; of codes in float32, as the errors of all other quantized layers are measured: in 16 bits what int8 is
    off by would be as much as rounding."""
    dtype = "float32" if rows.quant_type in BITS else rows.dtype
    return _wide(rows.values(dtype).reshape(-1).view(np.uint8), dtype)


def _wide(values: np.ndarray, dtype: str) -> np.ndarray:
    """float64"""
    return values.view("<f8") if dtype == "float64" else as_float32(values, dtype).astype(np.float64)
