"""Packs codes as V2 has them, by other means than the package's kernels."""

from __future__ import annotations

import numpy as np


def v2_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Packs codes, int8 [rows, columns], into uint8 [rows · ceil(columns · bits / 8)].

    With 8 bits, each code is a signed byte. Below, it is u = q + 2^(bits-1) in a stream of bits from the lowest up, and
    each row begins at a new byte.
    """
    if bits == 8:
        return codes.reshape(-1).view(np.uint8).copy()
    unsigned = (codes.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
    as_bits = (unsigned[:, :, None] >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(as_bits.reshape(len(codes), -1), axis=1, bitorder="little").reshape(-1)
