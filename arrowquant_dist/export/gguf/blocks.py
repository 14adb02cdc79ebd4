"""Makes GGML's blocks of codes from V2's packed codes: arrays in, a file's bytes out.

A block is a run of values of one row with a scale of its own: 32 values, or 256 in TQ2_0. Scales are fp16. Layouts are
those of ggml-common.h; tests decode them with `dequantize` of the `gguf` package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """The layout of a block. values, nbytes: number of values and of bytes in it. bits: bits per code. scale, minimum,
    codes: offsets in bytes; minimum is None if values are multiples of the scale. A value is (u - 2^(bits-1)) · scale,
    (u - 1) · scale in TQ2_0, or u · scale + minimum."""

    values: int
    nbytes: int
    bits: int
    scale: int
    codes: int
    minimum: int | None = None

    @property
    def counts_down(self) -> bool:
        """Whether its codes are 1 - q, so that V2's codes -2 … 1 become multiples of -scale; otherwise q +
        2^(bits-1)."""
        return self.bits == 2

    def fill(self, codes: np.ndarray, halves: Sequence[np.ndarray], out: np.ndarray) -> None:
        """Writes blocks. codes: uint8 [five dimensions, bytes of a block's codes], as V2 packs them. halves: float16
        [the five dimensions], scales and, if there is a minimum, minima. out: uint8 [the five dimensions, nbytes],
        every byte of which is written."""
        from arrowquant_dist.kernels.blocks import BlockBytes

        places = (self.scale,) if self.minimum is None else (self.scale, self.minimum)
        BlockBytes(self.bits, self.codes, codes.shape[-1], places).fill(codes, halves, out)


BLOCKS = {
    "Q8_0": BlockLayout(values=32, nbytes=34, bits=8, scale=0, codes=2),
    "Q4_0": BlockLayout(values=32, nbytes=18, bits=4, scale=0, codes=2),
    "Q4_1": BlockLayout(values=32, nbytes=20, bits=4, scale=0, codes=4, minimum=2),
    "TQ2_0": BlockLayout(values=256, nbytes=66, bits=2, scale=64, codes=0),
}


def in_four_bits(codes: np.ndarray, bits: int, *, is_symmetric: bool) -> np.ndarray:
    """Returns packed codes of 2 or 3 bits, uint8 [rows, bytes], as packed codes of 4 bits, uint8 [rows, twice or 4/3 as
    many bytes].

    Columns are a multiple of 8. Symmetric codes keep q; others keep u = q + 2^(bits-1), from which minima count.
    """
    wide = _wide_twos(codes) if bits == 2 else _wide_threes(codes)
    if is_symmetric:
        more = 8 - (1 << (bits - 1))
        wide += wide.dtype.type(int.from_bytes(bytes([more | more << 4] * wide.itemsize), "little"))
    packed: np.ndarray = wide.view(np.uint8)
    return packed


def _wide_twos(codes: np.ndarray) -> np.ndarray:
    """Returns uint16 [rows, bytes]: the four codes of each byte."""
    wide = codes.astype("<u2")
    for shift, kept in ((4, 0x0F0F), (2, 0x3333)):
        wide |= wide << np.uint16(shift)
        wide &= np.uint16(kept)
    return wide


def _wide_threes(codes: np.ndarray) -> np.ndarray:
    """Returns uint32 [rows, bytes / 3]: the eight codes of each three bytes."""
    first, second, third = (codes[:, start::3].astype("<u4") for start in range(3))
    wide: np.ndarray = first | second << np.uint32(8) | third << np.uint32(16)
    halves = ((4, 0x00000FFF, 0x0FFF0000), (2, 0x003F003F, 0x3F003F00), (1, 0x07070707, 0x70707070))
    for shift, low, high in halves:  # splits each run of adjacent codes, moving the higher half away
        wide = (wide & np.uint32(low)) | ((wide << np.uint32(shift)) & np.uint32(high))
    return wide
