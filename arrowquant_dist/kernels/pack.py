"""Packed rows: unsigned codes u = q - qmin, low bits first, each row from a byte boundary.

int2: byte = u0 | u1<<2 | u2<<4 | u3<<6; int4: byte = u0 | u1<<4; int3: the same dense bit order, 8 codes in 3 bytes.
If columns · bits is a multiple of 32, a packed row read as little-endian int32 is compressed-tensors' pack-quantized.
Spare bits of the last byte are 0.
"""

from __future__ import annotations

import numpy as np

from arrowquant_dist.kernels.compile import kernel


def packed_nbytes(columns: int, bits: int) -> int:
    """Bytes of one packed row."""
    return -(-columns * bits // 8)


@kernel
def _pack_bits(codes: np.ndarray, bits: int, start: int, packed: np.ndarray) -> None:
    """Packs code by code, from code `start` (on a byte boundary) to the row's end."""
    bias = 1 << (bits - 1)
    mask = (1 << bits) - 1
    word = np.int64(0)
    held = 0
    at = start * bits // 8
    for j in range(start, codes.size):
        word |= ((np.int64(codes[j]) + bias) & mask) << held
        held += bits
        if held >= 8:
            packed[at] = np.uint8(word & 255)
            word >>= 8
            held -= 8
            at += 1
    if held > 0:
        packed[at] = np.uint8(word & 255)


@kernel
def _pack_twos(words: np.ndarray, packed: np.ndarray) -> None:
    """words: uint32 [n], four codes each. packed: uint8 [n]."""
    for j in range(packed.size):
        word = np.uint32(words[j] ^ np.uint32(0x02020202)) & np.uint32(0x03030303)
        packed[j] = np.uint8((word | (word >> 6) | (word >> 12) | (word >> 18)) & 255)


@kernel
def _pack_fours(words: np.ndarray, packed: np.ndarray) -> None:
    """words: uint16 [n], two codes each. packed: uint8 [n]."""
    for j in range(packed.size):
        word = np.uint32(words[j] ^ np.uint16(0x0808)) & np.uint32(0x0F0F)
        packed[j] = np.uint8((word | (word >> 4)) & 255)


@kernel
def pack_row(codes: np.ndarray, bits: int, packed: np.ndarray) -> None:
    """Packs one row. codes: uint8 [columns], signed codes in two's complement. packed: uint8
    [packed_nbytes(columns, bits)], filled."""
    done = 0
    if bits == 2:
        done = codes.size & ~3
        _pack_twos(codes[:done].view(np.uint32), packed[: done >> 2])
    elif bits == 4:
        done = codes.size & ~1
        _pack_fours(codes[:done].view(np.uint16), packed[: done >> 1])
    if done < codes.size:
        _pack_bits(codes, bits, done, packed)


@kernel
def _unpack_bits(packed: np.ndarray, bits: int, start: int, codes: np.ndarray) -> None:
    bias = 1 << (bits - 1)
    mask = (1 << bits) - 1
    for j in range(start, codes.size):
        at = j * bits
        word = np.int64(packed[at >> 3])
        if (at & 7) + bits > 8:
            word |= np.int64(packed[(at >> 3) + 1]) << 8
        codes[j] = np.uint8((((word >> (at & 7)) & mask) - bias) & 255)


@kernel
def _unpack_twos(packed: np.ndarray, words: np.ndarray) -> None:
    for j in range(packed.size):
        byte = np.uint32(packed[j])
        spread = (byte | (byte << 6) | (byte << 12) | (byte << 18)) & np.uint32(0x03030303)
        # u - 2 in two's complement, byte by byte: flip the high bit, then extend it over the byte's upper six
        signed = spread ^ np.uint32(0x02020202)
        words[j] = np.uint32(signed | ((signed & np.uint32(0x02020202)) * np.uint32(0x7E)))


@kernel
def _unpack_threes(packed: np.ndarray, words: np.ndarray) -> None:
    """packed: uint8 [3 n]. words: uint64 [n], eight codes each."""
    for j in range(words.size):
        spread = (
            np.uint64(packed[3 * j])
            | (np.uint64(packed[3 * j + 1]) << np.uint64(8))
            | (np.uint64(packed[3 * j + 2]) << np.uint64(16))
        )
        spread = (spread | (spread << np.uint64(20))) & np.uint64(0x00000FFF00000FFF)
        spread = (spread | (spread << np.uint64(10))) & np.uint64(0x003F003F003F003F)
        spread = (spread | (spread << np.uint64(5))) & np.uint64(0x0707070707070707)
        signed = spread ^ np.uint64(0x0404040404040404)
        words[j] = signed | ((signed & np.uint64(0x0404040404040404)) * np.uint64(0x3E))


@kernel
def _unpack_fours(packed: np.ndarray, words: np.ndarray) -> None:
    for j in range(packed.size):
        byte = np.uint32(packed[j])
        signed = ((byte | (byte << 4)) & np.uint32(0x0F0F)) ^ np.uint32(0x0808)
        words[j] = np.uint16(signed | ((signed & np.uint32(0x0808)) * np.uint32(0x1E)))


@kernel
def unpack_row(packed: np.ndarray, bits: int, codes: np.ndarray) -> None:
    """Unpacks one row. packed: uint8. codes: uint8 [columns], filled with signed codes in two's complement."""
    done = 0
    if bits == 2:
        done = codes.size & ~3
        _unpack_twos(packed[: done >> 2], codes[:done].view(np.uint32))
    elif bits == 3:
        done = codes.size & ~7
        _unpack_threes(packed[: (done >> 3) * 3], codes[:done].view(np.uint64))
    elif bits == 4:
        done = codes.size & ~1
        _unpack_fours(packed[: done >> 1], codes[:done].view(np.uint16))
    if done < codes.size:
        _unpack_bits(packed, bits, done, codes)


@kernel
def take_columns(
    packed: np.ndarray, bits: int, first: int, columns: int, scratch: np.ndarray, out: np.ndarray
) -> None:
    """Codes [first, first + columns) of each row, packed again from a byte boundary.

    packed: uint8 [rows, row bytes]. scratch: uint8 [columns + 8]. out: uint8 [rows, packed_nbytes(columns, bits)].
    """
    begin = first & ~7  # eight codes end on a byte boundary, whatever their width
    skipped = first - begin
    for i in range(out.shape[0]):
        if bits == 8:
            for j in range(columns):
                out[i, j] = packed[i, first + j]
            continue
        unpack_row(packed[i, begin * bits // 8 :], bits, scratch[: skipped + columns])
        for j in range(columns):
            scratch[j] = scratch[skipped + j]
        pack_row(scratch[:columns], bits, out[i])


@kernel
def repack_rows(
    packed: np.ndarray, bits: int, scratch: np.ndarray, stored_bits: int, out: np.ndarray
) -> None:
    """Repacks codes of 1 to 7 bits as codes of a wider type. packed: uint8 [rows, row bytes]. scratch: uint8 [columns].
    stored_bits: bits of the wider type: 2, 3, 4, or 8, whose codes are signed bytes. out: uint8 [rows, row bytes]."""
    for i in range(out.shape[0]):
        if stored_bits == 8:
            unpack_row(packed[i], bits, out[i])
        else:
            unpack_row(packed[i], bits, scratch)
            pack_row(scratch, stored_bits, out[i])
