"""Rows whose stored form was found by training beforehand: it comes in one piece of memory together with the source's
values, and only has to be measured against them."""

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
    """Size in bytes of the stored form of rows: a `KeptRows`, or values of `dtype`. matrix: (rows, columns)."""
    return kept_nbytes(matrix, spec) if spec.is_quantized else matrix[0] * matrix[1] * DTYPES[dtype].itemsize


def trained_tensor(
    memory: np.ndarray, shape: tuple[int, ...], dtype: str, spec: QuantSpec
) -> QuantizedTensor:
    """The stored form as a tensor, with its errors measured against the source's values.

    memory: uint8, the stored form, followed, from the next aligned byte on, by the source's values of `shape` and
    `dtype`. The result shares this memory."""
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
    """Decoded values in float64. Codes are decoded to float32, as for the errors of all other quantized layers:
    decoding to 16 bits would add rounding errors as large as those of int8."""
    dtype = "float32" if rows.quant_type in BITS else rows.dtype
    return _wide(rows.values(dtype).reshape(-1).view(np.uint8), dtype)


def _wide(values: np.ndarray, dtype: str) -> np.ndarray:
    """float64"""
    return values.view("<f8") if dtype == "float64" else as_float32(values, dtype).astype(np.float64)
