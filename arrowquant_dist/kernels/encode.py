"""Codes of a run of values that share one scale, and the sums that measure their errors, in one pass."""

from __future__ import annotations

import numpy as np

from arrowquant_dist.kernels.bits import (
    float32_bits,
    larger,
    round_half_even,
    smaller,
    to_code,
    to_float32,
)
from arrowquant_dist.kernels.compile import kernel, plus_product

_CHUNK = 4096  # values whose metrics are summed in float32 before they are added in float64


@kernel
def _encode_chunk(
    run: np.ndarray,
    scale: np.float32,
    zero_point: np.float32,
    qmin: np.float32,
    qmax: np.float32,
    codes: np.ndarray,
) -> tuple[np.float32, np.float32, np.float32, np.int32]:
    """Float32 (Σx², Σx̂², Σ(x-x̂)², max|x-x̂|) of up to _CHUNK values; writes their codes."""
    x_sum = np.float32(0.0)
    d_sum = np.float32(0.0)
    e_sum = np.float32(0.0)
    top = np.int32(0)
    for j in range(run.size):
        x = to_float32(run[j])
        q = round_half_even(smaller(larger(x / scale + zero_point, qmin), qmax))
        codes[j] = to_code(q)
        decoded = (q - zero_point) * scale
        error = x - decoded
        x_sum = plus_product(x_sum, x, x)
        d_sum = plus_product(d_sum, decoded, decoded)
        e_sum = plus_product(e_sum, error, error)
        top = larger(float32_bits(abs(error)), top)
    return x_sum, d_sum, e_sum, top


@kernel
def _encode_wide_chunk(
    run: np.ndarray,
    scale: np.float32,
    zero_point: np.float32,
    qmin: np.float32,
    qmax: np.float32,
    codes: np.ndarray,
) -> tuple[float, float, float, np.int32]:
    """_encode_chunk with float64 sums, for scales whose squares leave float32; the same codes."""
    x_sum = 0.0
    d_sum = 0.0
    e_sum = 0.0
    top = np.int32(0)
    for j in range(run.size):
        x = to_float32(run[j])
        q = round_half_even(smaller(larger(x / scale + zero_point, qmin), qmax))
        codes[j] = to_code(q)
        decoded = (q - zero_point) * scale
        error = x - decoded
        x_sum = plus_product(x_sum, np.float64(x), np.float64(x))
        d_sum = plus_product(d_sum, np.float64(decoded), np.float64(decoded))
        e_sum = plus_product(e_sum, np.float64(error), np.float64(error))
        top = larger(float32_bits(abs(error)), top)
    return x_sum, d_sum, e_sum, top


@kernel
def encode_run(
    run: np.ndarray,
    scale: np.float32,
    zero_point: np.float32,
    qmin: np.float32,
    qmax: np.float32,
    codes: np.ndarray,
    sums: np.ndarray,
) -> None:
    """q = round(x / scale + zero_point) clamped to [qmin, qmax], in IEEE float32, ties to even.

    run: source bits [n]. scale, zero_point, qmin, qmax: float32 (zero_point 0 where symmetric). codes: uint8 [n], the
    signed code in two's complement. sums: float64 [4], to which Σx², Σx̂², Σ(x-x̂)² are added; the last is max|x-x̂|.
    """
    size = abs(scale) * max(np.float32(1.0), abs(zero_point))
    narrow = size > np.float32(1e-12) and size < np.float32(1e12)
    for start in range(0, run.size, _CHUNK):
        part = run[start : start + _CHUNK]
        out = codes[start : start + _CHUNK]
        if narrow:
            a, b, c, d = _encode_chunk(part, scale, zero_point, qmin, qmax, out)
            sums[0] += np.float64(a)
            sums[1] += np.float64(b)
            sums[2] += np.float64(c)
        else:
            x, y, z, d = _encode_wide_chunk(part, scale, zero_point, qmin, qmax, out)
            sums[0] += x
            sums[1] += y
            sums[2] += z
        sums[3] = max(sums[3], np.float64(to_float32(d)))
