"""Huffman codes as in zstd (RFC 8878, 4.2): lengths from counts, and encoding of bytes to bit streams two at a time.

Codes of quantized weights contain no repeated strings, so all that a compressor can do is to give common bytes short
codes. With a table of all pairs of bytes this is 1.7 times as fast as zstd's level 1, which first searches for
repetitions, counts the bytes of every block and encodes them one by one.
"""

from __future__ import annotations

import numpy as np

from arrowquant_dist.kernels.compile import kernel
from arrowquant_dist.kernels.memory import load_pair, store_word

SYMBOLS = 256
MAX_BITS = 11
PAIRS = SYMBOLS * SYMBOLS
STREAM_ROOM = 1 << 16  # bytes: room for a quarter of a block, 2^15 codes of MAX_BITS, and the word at its end

_PACKAGES = 2 * SYMBOLS
LENGTHS_SCRATCH = SYMBOLS + 2 * _PACKAGES + MAX_BITS * _PACKAGES  # int64: see code_lengths


@kernel
def _sort_by_count(counts: np.ndarray, order: np.ndarray) -> int:
    """order: int64 [256], receives count << 8 | symbol of the symbols that occur, smallest first, by insertion sort.
    Returns how many."""
    found = 0
    for symbol in range(SYMBOLS):
        if counts[symbol] == 0:
            continue
        key = counts[symbol] << 8 | symbol
        at = found
        while at > 0 and order[at - 1] > key:
            order[at] = order[at - 1]
            at -= 1
        order[at] = key
        found += 1
    return found


@kernel
def code_lengths(counts: np.ndarray, scratch: np.ndarray, lengths: np.ndarray) -> None:
    """Lengths of the code that takes the fewest bits among those with at most MAX_BITS per symbol. It is complete:
    Σ 2^-length = 1 over the symbols that occur; the others have length 0 and no code.

    counts: int64 [256], each below 2^40, at least two above 0. scratch: int64 [LENGTHS_SCRATCH]. lengths: int64 [256],
    filled. Package-merge (Larmore and Hirschberg 1990): at each level pairs of the level before are merged with the n
    symbols; the cheapest 2n - 2 of the last level tell how often each symbol was taken, which is its length.
    """
    order = scratch[:SYMBOLS]
    before = scratch[SYMBOLS : SYMBOLS + _PACKAGES]
    merged = scratch[SYMBOLS + _PACKAGES : SYMBOLS + 2 * _PACKAGES]
    is_symbol = scratch[SYMBOLS + 2 * _PACKAGES :]
    present = _sort_by_count(counts, order)
    packages = 0
    for level in range(MAX_BITS):
        i = 0
        j = 0
        for at in range(present + packages):
            takes_symbol = j == packages or (
                i < present and order[i] >> 8 <= before[2 * j] + before[2 * j + 1]
            )
            if takes_symbol:
                merged[at] = order[i] >> 8
                i += 1
            else:
                merged[at] = before[2 * j] + before[2 * j + 1]
                j += 1
            is_symbol[level * _PACKAGES + at] = takes_symbol
        before, merged = merged, before
        packages = (present + packages) // 2
    lengths[:] = 0
    taken = 2 * present - 2
    for level in range(MAX_BITS - 1, -1, -1):
        symbols = 0
        for at in range(taken):
            symbols += is_symbol[level * _PACKAGES + at]
        for i in range(symbols):
            lengths[order[i] & 255] += 1
        taken = 2 * (taken - symbols)


@kernel
def pair_table(lengths: np.ndarray, codes: np.ndarray, table: np.ndarray) -> None:
    """Fills table[a | b << 8]: in the highest bits the code of byte a followed by that of byte b, in the lowest bits
    the number of these bits; 0 if one of the bytes has no code.

    lengths: int64 [256], of a complete code. codes: uint64 [256], scratch. table: uint64 [PAIRS].
    """
    code = np.uint64(0)
    # the longest codes are the smallest numbers; codes of one length are in the order of symbols
    for bits in range(MAX_BITS, 0, -1):
        for symbol in range(SYMBOLS):
            if lengths[symbol] == bits:
                codes[symbol] = code
                code += np.uint64(1)
        code >>= np.uint64(1)
    for second in range(SYMBOLS):
        low, low_bits = codes[second], np.uint64(lengths[second])
        for first in range(SYMBOLS):
            if lengths[first] == 0 or lengths[second] == 0:
                table[second << 8 | first] = np.uint64(0)
                continue
            pair_bits = np.uint64(lengths[first]) + low_bits
            pair = codes[first] << low_bits | low
            table[second << 8 | first] = pair << (np.uint64(64) - pair_bits) | pair_bits


@kernel
def encode_two(
    values: np.ndarray, first: int, second: int, count: int, table: np.ndarray, out: np.ndarray, at: int
) -> tuple[np.int64, np.int64]:
    """Writes two streams: values[first : first + count] to out[at:], and values[second : second + count] to the room
    after it, out[at + STREAM_ROOM:]. Returns where they end.

    values: uint8. count: a multiple of 4, at least 4. table: from pair_table. out: uint8, with room for both. Values
    are encoded from the last to the first, because streams are read from their end; two streams at once, because each
    byte's place depends on the one before it, and the CPU has time for another in the meantime.
    """
    zero, one, three, seven = np.uint64(0), np.uint64(1), np.uint64(3), np.uint64(7)
    in_word, in_byte = np.uint64(63), np.uint64(255)
    left, right = zero, zero  # the latest bits on top; below them bits that were written
    left_bits, right_bits = zero, zero
    left_at, right_at = np.int64(at), np.int64(at + STREAM_ROOM)
    for step in range(count - 4, -1, -4):
        entry = table[load_pair(values, first + step + 2)]
        left = (left >> (entry & in_word)) | entry
        left_bits += entry
        entry = table[load_pair(values, second + step + 2)]
        right = (right >> (entry & in_word)) | entry
        right_bits += entry
        entry = table[load_pair(values, first + step)]
        left = (left >> (entry & in_word)) | entry
        left_bits = (left_bits + entry) & in_byte
        entry = table[load_pair(values, second + step)]
        right = (right >> (entry & in_word)) | entry
        right_bits = (right_bits + entry) & in_byte
        store_word(out, left_at, left >> ((zero - left_bits) & in_word))
        store_word(out, right_at, right >> ((zero - right_bits) & in_word))
        left_at += np.int64(left_bits >> three)
        right_at += np.int64(right_bits >> three)
        left_bits &= seven
        right_bits &= seven
    top = one << in_word  # the bit that says where a stream ends
    store_word(out, left_at, ((left >> one) | top) >> (in_word - left_bits))
    store_word(out, right_at, ((right >> one) | top) >> (in_word - right_bits))
    return left_at + 1, right_at + 1
