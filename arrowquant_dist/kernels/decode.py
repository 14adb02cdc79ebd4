"""Codes → values: x̂ = (q - zero_point) · scale in IEEE float32, then rounded to the dtype asked for."""

from __future__ import annotations

import numpy as np

from arrowquant_dist.kernels.bits import from_code, to_bits
from arrowquant_dist.kernels.compile import kernel
from arrowquant_dist.kernels.pack import unpack_row


@kernel
def _decode_symmetric_run(codes: np.ndarray, scale: np.float32, out: np.ndarray) -> None:
    for j in range(codes.size):
        out[j] = to_bits(from_code(codes[j]) * scale, out[j])


@kernel
def _decode_run(codes: np.ndarray, scale: np.float32, zero_point: np.float32, out: np.ndarray) -> None:
    for j in range(codes.size):
        out[j] = to_bits((from_code(codes[j]) - zero_point) * scale, out[j])


@kernel
def dequantize_rows(
    codes: np.ndarray,
    width: int,
    group: int,
    scales: np.ndarray,
    zero_points: np.ndarray,
    first: int,
    scratch: np.ndarray,
    out: np.ndarray,
) -> None:
    """Decodes packed rows, of each row the columns from `first` on that `out` has.

    codes: uint8 [rows, row bytes], `width` bits a code. group: values a scale. scales: float32 [rows, groups];
    zero_points: the same, or [rows, 0] where symmetric. scratch: uint8 [columns of out + 8]. out: int32 (float32),
    uint16 (bfloat16) or int16 (float16) bits [rows, columns]; a value beyond the dtype's range becomes its largest
    finite one.
    """
    columns = out.shape[1]
    begin = first & ~7  # eight codes end on a byte, whatever their width
    skipped = first - begin
    for i in range(out.shape[0]):
        if width != 8:
            unpack_row(codes[i, begin * width // 8 :], width, scratch[: skipped + columns])
        plain = codes[i, first:] if width == 8 else scratch[skipped:]
        row = out[i]
        start = 0
        k = first // group
        while start < columns:
            stop = min((k + 1) * group - first, columns)
            if zero_points.shape[1] == 0:
                _decode_symmetric_run(plain[start:stop], scales[i, k], row[start:stop])
            else:
                _decode_run(plain[start:stop], scales[i, k], zero_points[i, k], row[start:stop])
            start = stop
            k += 1
