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
    scratch: np.ndarray,
    out: np.ndarray,
) -> None:
    """Decodes packed rows.

    codes: uint8 [rows, row bytes], `width` bits a code. group: values a scale. scales: float32 [rows, groups];
    zero_points: the same, or [rows, 0] where symmetric. scratch: uint8 [columns]. out: int32 (float32), uint16
    (bfloat16) or int16 (float16) bits [rows, columns]; a value beyond the dtype's range becomes its largest finite one.
    """
    for i in range(out.shape[0]):
        if width != 8:
            unpack_row(codes[i], width, scratch)
        plain = codes[i] if width == 8 else scratch
        row = out[i]
        for k in range(scales.shape[1]):
            start = k * group
            stop = min(start + group, row.size)
            if zero_points.shape[1] == 0:
                _decode_symmetric_run(plain[start:stop], scales[i, k], row[start:stop])
            else:
                _decode_run(plain[start:stop], scales[i, k], zero_points[i, k], row[start:stop])
