"""GGML's blocks of codes, made of V2's packed codes: arrays in, a file's bytes out.

A block is a run of values of one row with a scale of its own: 32 values, 256 in TQ2_0. Scales are fp16. Layouts as in
ggml-common.h; the `gguf` package's `dequantize` is what the tests decode them with.

Codes are moved as 64-bit words, some shifts and masks for eight bytes: one byte at a time numpy took three times as
long.
"""

from __future__ import annotations

import numpy as np

_LOW_FOURS, _HIGH_FOURS = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(0xF0F0F0F0F0F0F0F0)
_EVEN_TWOS, _ODD_TWOS = np.uint64(0x3333333333333333), np.uint64(0xCCCCCCCCCCCCCCCC)
_TWO, _FOUR = np.uint64(2), np.uint64(4)


def q8_0(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """codes: uint8 [blocks, 32], int8's. scales: float16 [blocks]. Returns uint8 [blocks, 34]: scale, codes."""
    return _blocks(("d", scales), ("codes", codes))


def q4_0(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """codes: uint8 [blocks, 16], int4's as V2 packs them. scales: float16 [blocks].

    Returns uint8 [blocks, 18]: scale, then bytes u[j] | u[j + 16] << 4. A value is (u - 8) · scale.
    """
    return _blocks(("d", scales), ("codes", _halves_of_32(codes)))


def q4_1(codes: np.ndarray, scales: np.ndarray, minima: np.ndarray) -> np.ndarray:
    """As `q4_0`; a value is u · scale + minimum. Returns uint8 [blocks, 20]: scale, minimum, codes."""
    return _blocks(("d", scales), ("m", minima), ("codes", _halves_of_32(codes)))


def tq2_0(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """codes: uint8 [blocks, 64], int2's as V2 packs them. scales: float16 [blocks], V2's own.

    Returns uint8 [blocks, 66]: codes, scale. A value is (u' - 1) · d with u' in 0 … 3, so that -2 … 1, V2's codes, are
    u' = 1 - q and d = -scale. Of each 128 values byte m has 0, 32, 64 and 96 + m, low bits first.
    """
    quarters = (
        (~codes).view("<u8").reshape(-1, 4)
    )  # 1 - q = 3 - (q + 2): all bits of the code, the other way round
    first, second, third, fourth = (np.ascontiguousarray(quarters[:, k]) for k in range(4))
    # A byte of a quarter has four neighbours; a byte of the block, one of each quarter: 4 × 4 codes are transposed.
    even, odd = _transposed_twos(first, second)
    later_even, later_odd = _transposed_twos(third, fourth)
    words = np.zeros(first.size * 8, "<u4")
    for j, (low, high) in enumerate(((even, later_even), (odd, later_odd))):
        words |= _bytes((low & _LOW_FOURS) | ((high & _LOW_FOURS) << _FOUR)) << np.uint32(8 * j)
        words |= _bytes(((low >> _FOUR) & _LOW_FOURS) | (high & _HIGH_FOURS)) << np.uint32(8 * j + 16)
    return _blocks(("codes", words.view(np.uint8).reshape(codes.shape)), ("d", -scales))


def _transposed_twos(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint64 [words], codes of 2 bits. Returns those at even and at odd places, of `first` and `second` in turns."""
    even = (first & _EVEN_TWOS) | ((second & _EVEN_TWOS) << _TWO)
    odd = ((first >> _TWO) & _EVEN_TWOS) | (second & _ODD_TWOS)
    return even, odd


def _bytes(words: np.ndarray) -> np.ndarray:
    """uint64 [words]. Returns their bytes, uint32 [words · 8]."""
    return words.astype("<u8", copy=False).view(np.uint8).astype("<u4")


def _halves_of_32(codes: np.ndarray) -> np.ndarray:
    """Bytes u[j] | u[j + 16] << 4 of bytes u[2j] | u[2j + 1] << 4. uint8 [blocks, 16], both."""
    words = codes.view("<u8").reshape(-1, 2)
    first, second = words[:, 0], words[:, 1]  # values 0 … 15 and 16 … 31
    even = (first & _LOW_FOURS) | ((second & _LOW_FOURS) << _FOUR)
    odd = ((first >> _FOUR) & _LOW_FOURS) | (second & _HIGH_FOURS)
    pairs = odd.astype("<u8", copy=False).view(np.uint8).astype("<u2")
    pairs <<= np.uint16(8)
    pairs |= even.astype("<u8", copy=False).view(np.uint8)
    return pairs.view(np.uint8).reshape(-1, 16)


def _blocks(*fields: tuple[str, np.ndarray]) -> np.ndarray:
    """Blocks of these fields, each [blocks] or uint8 [blocks, bytes], side by side. Returns uint8 [blocks, bytes]."""
    whole = [(name, _as_whole(values)) for name, values in fields]
    blocks = np.empty(whole[0][1].size, [(name, values.dtype) for name, values in whole])
    for name, values in whole:
        blocks[name] = values
    return blocks.view(np.uint8).reshape(blocks.size, -1)


def _as_whole(values: np.ndarray) -> np.ndarray:
    """[blocks]: float16, or all bytes of a block as one value, which numpy copies at once."""
    if values.ndim == 1:
        return values.astype("<f2", copy=False)
    return np.ascontiguousarray(values).view(f"V{values.shape[1]}").reshape(-1)
