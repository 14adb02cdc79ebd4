"""Code lengths compared with two textbook algorithms, and pairs of codes with single ones."""

from __future__ import annotations

import heapq
from itertools import count, pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_dist.kernels.zstd.huffman import LENGTHS_SCRATCH, MAX_BITS, PAIRS, code_lengths, pair_table

# 256 numbers each, which take longer to draw than to count.
of_many_numbers = settings(max_examples=60)
COUNTS = st.lists(st.floats(0, 36).map(lambda x: int(2**x)), min_size=256, max_size=256)


def lengths_of(counts: list[int]) -> np.ndarray:
    lengths = np.full(256, -1, np.int64)
    code_lengths(np.array(counts, np.int64), np.full(LENGTHS_SCRATCH, -7, np.int64), lengths)
    return lengths


def unlimited_bits(counts: list[int]) -> int:
    """Bits of the best code of any length (Huffman 1952)."""
    heap, total = list(counts), 0
    heapq.heapify(heap)
    while len(heap) > 1:
        pair = heapq.heappop(heap) + heapq.heappop(heap)
        total += pair
        heapq.heappush(heap, pair)
    return total


def limited_bits(counts: list[int], most: int) -> int:
    """Bits of the best code of at most `most` a symbol: packages as lists of the symbols in them."""
    number = count()
    symbols = sorted((weight, next(number), [i]) for i, weight in enumerate(counts))
    packages: list[tuple[int, int, list[int]]] = []
    for _ in range(most):
        items = sorted(symbols + packages)
        packages = [(a[0] + b[0], next(number), a[2] + b[2]) for a, b in zip(items[::2], items[1::2])]  # noqa: B905
    return sum(weight for weight, _, _ in items[: 2 * len(counts) - 2])


@of_many_numbers
@given(COUNTS)
def test_no_code_of_at_most_11_bits_takes_fewer(counts: list[int]) -> None:
    lengths = lengths_of(counts)
    assert lengths.min() >= 1
    assert lengths.max() <= MAX_BITS
    assert sum(2.0**-lengths) == 1
    assert int(lengths @ np.array(counts)) == limited_bits(counts, MAX_BITS)


@of_many_numbers
@given(
    st.dictionaries(st.integers(0, 255), st.floats(0, 36).map(lambda x: int(2**x)), min_size=2, max_size=60)
)
def test_symbols_that_do_not_occur_have_no_code(present: dict[int, int]) -> None:
    counts = [present.get(symbol, 0) for symbol in range(256)]
    lengths = lengths_of(counts)
    assert [symbol for symbol in range(256) if lengths[symbol]] == sorted(present)
    assert sum(2.0 ** -lengths[lengths > 0]) == 1
    assert int(lengths @ np.array(counts)) == limited_bits([*present.values()], MAX_BITS)


@of_many_numbers
@given(st.lists(st.integers(1000, 8000), min_size=256, max_size=256))
def test_where_the_limit_does_not_matter_it_is_huffmans_code(counts: list[int]) -> None:
    assert int(lengths_of(counts) @ np.array(counts)) == unlimited_bits(counts)


@of_many_numbers
@given(COUNTS, st.integers(0, 255), st.integers(0, 255))
def test_a_pair_is_the_second_bytes_code_and_the_firsts_in_front(
    counts: list[int], first: int, second: int
) -> None:
    lengths = lengths_of(counts)
    codes, table = np.zeros(256, np.uint64), np.zeros(PAIRS, np.uint64)
    pair_table(lengths, codes, table)
    written = [f"{int(code):0{length}b}" for code, length in zip(codes, lengths, strict=True)]
    assert len(set(written)) == 256
    assert not [a for a, b in pairwise(sorted(written)) if b.startswith(a)]
    entry = int(table[first | second << 8])
    bits = entry & 63
    assert bits == lengths[first] + lengths[second]
    assert f"{entry >> (64 - bits):0{bits}b}" == written[first] + written[second]
