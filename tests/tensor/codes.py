"""Codes packed as V2 has them, by other means than the package's kernels."""

from __future__ import annotations

import numpy as np


def v2_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """codes: int8 [rows, columns]. Returns uint8 [rows · ceil(columns · bits / 8)]: a signed byte each, or below 8 bits
    u = q + 2^(b-1) in a stream of bits from the lowest up, each row from a byte of its own."""
    if bits == 8:
        return codes.reshape(-1).view(np.uint8).copy()
    unsigned = (codes.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
    as_bits = (unsigned[:, :, None] >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(as_bits.reshape(len(codes), -1), axis=1, bitorder="little").reshape(-1)
