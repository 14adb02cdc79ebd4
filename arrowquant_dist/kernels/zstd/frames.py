"""Blocks of a zstd frame, of Huffman-coded literals alone (RFC 8878, 3.1.1.3): what any decoder reads, written without
a search for repetitions."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from arrowquant_dist.kernels.compile import kernel
from arrowquant_dist.kernels.memory import copy_bytes
from arrowquant_dist.kernels.zstd.huffman import (
    LENGTHS_SCRATCH,
    PAIRS,
    STREAM_ROOM,
    SYMBOLS,
    code_lengths,
    encode_two,
    pair_table,
)
from arrowquant_dist.kernels.zstd.huffman_tree import MAX_TREE_NBYTES, TREE_SCRATCH, write_tree

BLOCK_NBYTES = 1 << 17  # the most that a block may hold

_SEGMENT_BLOCKS = (
    64  # that share a code, where it suits all: to make its table takes as long as to encode 3 of them
)
# The part of a segment's bytes, one in so many, that blocks with codes of their own have to save.
_UNLIKE = 128
_LOOKS, _LOOK_NBYTES = 32, 64  # at a block, to see whether it is like the others
_NAT = 1 << 20  # parts of one, in which entropies are counted
_LOG_2, _ROOT_HALF, _LAST_ODD = 0.6931471805599453, 0.7071067811865476, 17
_STREAMS = 4
_RAW, _COMPRESSED, _TREELESS = 0, 2, 3  # of blocks and literals; _TREELESS: by the code of the block before
_FOUR_LONG_STREAMS = 3
_BLOCK_HEADER, _LITERALS_HEADER, _JUMPS, _NO_SEQUENCES = 3, 5, 6, 1
_TREE_ROOM = 2 * MAX_TREE_NBYTES
_LEAST_GAIN = 64  # zstd's own rule: what saves less than 1/64 is stored as it is, and read faster
_SAMPLES, _SAMPLE_NBYTES = 512, 256  # of a segment, to make its code for
_FEW = 16  # bytes of 256: that many codes of 11 bits cost others a hundredth of theirs
_LEAST_SYMBOLS = 2
_LANES = 4  # of a count, so that a byte that comes twice in a row need not wait


@dataclass(frozen=True, slots=True, eq=False)
class Workspace:
    """What `write_blocks` works in; a thread's own. 950 KB."""

    counts: np.ndarray = field(default_factory=lambda: np.empty((_LANES, SYMBOLS), np.int64))
    lengths: np.ndarray = field(default_factory=lambda: np.empty(SYMBOLS, np.int64))
    codes: np.ndarray = field(default_factory=lambda: np.empty(SYMBOLS, np.uint64))
    scratch: np.ndarray = field(
        default_factory=lambda: np.empty(max(LENGTHS_SCRATCH, TREE_SCRATCH), np.int64)
    )
    blocks: np.ndarray = field(default_factory=lambda: np.empty((_SEGMENT_BLOCKS, SYMBOLS), np.int64))
    table: np.ndarray = field(default_factory=lambda: np.empty(PAIRS, np.uint64))
    streams: np.ndarray = field(
        default_factory=lambda: np.empty(_TREE_ROOM + _STREAMS * STREAM_ROOM, np.uint8)
    )


def block_count(nbytes: int) -> int:
    return -(-nbytes // BLOCK_NBYTES)


def blocks_bound(nbytes: int) -> int:
    """The most bytes that `write_blocks` writes: all of them stored, the last ones apart."""
    return nbytes + _BLOCK_HEADER * (block_count(nbytes) + 1)


def write_blocks(
    values: np.ndarray, out: np.ndarray, at: int, sizes: np.ndarray, workspace: Workspace
) -> int:
    """Blocks that hold `values`, none of them marked as the last, at out[at:]. Returns where they end.

    values: uint8 [n]. out: uint8, room for blocks_bound(n). sizes: int64 [block_count(n)], becomes each block's bytes.
    """
    for first in range(0, sizes.size, _SEGMENT_BLOCKS):
        last = min(first + _SEGMENT_BLOCKS, sizes.size)
        segment = values[first * BLOCK_NBYTES : last * BLOCK_NBYTES]
        alike = 1 if _are_unlike(segment, workspace.blocks) else _SEGMENT_BLOCKS
        for block in range(first, last, alike):
            stop = min(block + alike, last)
            own = values[block * BLOCK_NBYTES : stop * BLOCK_NBYTES]
            tree_nbytes = _make_code(own, workspace)
            found = sizes[block:stop]
            at = _write_segment(own, out, at, found, tree_nbytes, workspace.table, workspace.streams)
    return at


def _are_unlike(segment: np.ndarray, counts: np.ndarray) -> bool:
    """Whether codes of their own make the segment's blocks smaller, by some bytes of each. counts: as of Workspace.

    Rows of an embedding whose steps follow from how often they are read are finer at one end than at the other: of
    MiniLM's at 8.5 MB a code for each block saves 2.9 %, of all layers 1.3 %. Of n bytes that are looked at, k of them
    different ones, the entropy is (k - 1) / 2n nats less than of what they are taken from.
    """
    blocks = block_count(segment.size)
    if blocks < 2:
        return False
    own = counts[:blocks]
    _count_looks(segment, own)
    if np.count_nonzero(own, axis=1).min() < _LEAST_SYMBOLS:
        return False  # which by itself has no code, and would be stored as it is
    together = own.sum(axis=0)
    # what ideal codes take: Σ n log(total / n)
    apart = int(_N_LOG_N[own.sum(axis=1)].sum() - _N_LOG_N[own].sum())
    shared = int(_n_log_n(together.sum()) - _n_log_n(together).sum())
    kinds = int(np.count_nonzero(own) - blocks - (np.count_nonzero(together) - 1))
    return shared - apart - kinds * _NAT // 2 > shared // _UNLIKE


def _n_log_n(counts: np.ndarray) -> np.ndarray:
    """int64, in parts of a nat. counts: int64, below 2^32.

    Made of additions, products and quotients alone, which are the same numbers on every machine: logarithms of numpy
    differ in their last digit from CPU to CPU. 1e-15 off at most.
    """
    mantissa, power = np.frexp(np.maximum(counts, 1).astype(np.float64))
    part = (mantissa - _ROOT_HALF) / (mantissa + _ROOT_HALF)  # of log(mantissa / √½), within 0.172
    square = part * part
    series = np.zeros_like(part)
    for odd in range(_LAST_ODD, 0, -2):
        series = series * square + 1.0 / odd
    log = 2.0 * part * series + (power - 0.5) * _LOG_2
    found: np.ndarray = np.rint(counts * log * _NAT).astype(np.int64)
    return found


_N_LOG_N = _n_log_n(np.arange(_LOOKS * _LOOK_NBYTES + 1))


@kernel
def _count_looks(segment: np.ndarray, counts: np.ndarray) -> None:
    """counts: int64 [blocks, 256], becomes how often each byte is met in _LOOKS places of each block."""
    counts[:, :] = 0
    for block in range(counts.shape[0]):
        start = block * BLOCK_NBYTES
        nbytes = min(BLOCK_NBYTES, segment.size - start)
        for look in range(_LOOKS):
            first = start + look * nbytes // _LOOKS
            for i in range(first, min(first + _LOOK_NBYTES, start + nbytes)):
                counts[block, segment[i]] += 1


def _make_code(segment: np.ndarray, w: Workspace) -> int:
    """The code for a segment: its table, and its tree, whose length is returned, in the first bytes of `streams`. 0: it
    would save too little."""
    _count_sample(segment, w.counts)
    counts = w.counts[0]
    if np.count_nonzero(counts == 1) >= _FEW:
        _count_all(segment, w.counts)
        if np.count_nonzero(counts) < _LEAST_SYMBOLS:
            return 0
    code_lengths(counts, w.scratch, w.lengths)
    nbits = 8 * int(counts.sum())
    if nbits - int(counts @ w.lengths) <= nbits // _LEAST_GAIN:
        return 0
    pair_table(w.lengths, w.codes, w.table)
    return int(write_tree(w.lengths, w.scratch, w.streams))


@kernel
def _count_sample(segment: np.ndarray, counts: np.ndarray) -> None:
    """counts: int64 [_LANES, 256], becomes in its first row how often each byte was met, and once more: all of them
    get a code.

    To leave out those that the sample does not hold, and to begin anew when one comes, took a fifth of the speed, and
    made codes of weights no smaller where nearly all bytes occur: some row has each of them. Where _FEW do not, all
    bytes are counted, and the others get no code: with 240 symbols that never come, each of 11 bits, codes of 2.5 bits
    took 0.2 bits more.
    """
    counts[:, :] = 0
    step = max(segment.size // _SAMPLES, _SAMPLE_NBYTES)
    for start in range(0, segment.size, step):
        stop = min(start + _SAMPLE_NBYTES, segment.size)
        for i in range(start, stop - _LANES + 1, _LANES):
            for lane in range(_LANES):
                counts[lane, segment[i + lane]] += 1
    for symbol in range(SYMBOLS):
        total = 1
        for lane in range(_LANES):
            total += counts[lane, symbol]
        counts[0, symbol] = total


@kernel
def _count_all(segment: np.ndarray, counts: np.ndarray) -> None:
    """counts: int64 [_LANES, 256], becomes in its first row how often each byte occurs."""
    counts[:, :] = 0
    whole = segment.size // _LANES * _LANES
    for i in range(0, whole, _LANES):
        for lane in range(_LANES):
            counts[lane, segment[i + lane]] += 1
    for i in range(whole, segment.size):
        counts[0, segment[i]] += 1
    for symbol in range(SYMBOLS):
        for lane in range(1, _LANES):
            counts[0, symbol] += counts[lane, symbol]


@kernel
def _write_number(out: np.ndarray, at: int, number: int, nbytes: int) -> int:
    """Little-endian. Returns where it ends."""
    for i in range(nbytes):
        out[at + i] = (number >> (8 * i)) & 255
    return at + nbytes


@kernel
def _copy(source: np.ndarray, start: int, nbytes: int, out: np.ndarray, at: int) -> int:
    """Returns where it ends."""
    copy_bytes(source, start, nbytes, out, at)
    return at + nbytes


@kernel
def _write_raw(values: np.ndarray, start: int, nbytes: int, out: np.ndarray, at: int) -> int:
    if nbytes == 0:
        return at
    at = _write_number(out, at, _RAW << 1 | nbytes << 3, _BLOCK_HEADER)
    return _copy(values, start, nbytes, out, at)


@kernel
def _write_coded(
    values: np.ndarray,
    start: int,
    nbytes: int,
    tree_nbytes: int,
    table: np.ndarray,
    streams: np.ndarray,
    out: np.ndarray,
    at: int,
) -> int:
    """A block of nbytes, a multiple of 16. Its tree lies in streams[:tree_nbytes]; that of the block before is meant
    where tree_nbytes is 0. Returns where it ends; -1 if it saves too little."""
    count = nbytes // _STREAMS
    first, second, third, fourth = start, start + count, start + 2 * count, start + 3 * count
    rooms = _TREE_ROOM
    a, b = encode_two(values, first, second, count, table, streams, rooms)
    c, d = encode_two(values, third, fourth, count, table, streams, rooms + 2 * STREAM_ROOM)
    a -= rooms
    b -= rooms + STREAM_ROOM
    c -= rooms + 2 * STREAM_ROOM
    d -= rooms + 3 * STREAM_ROOM
    literals = tree_nbytes + _JUMPS + a + b + c + d
    size = _LITERALS_HEADER + literals + _NO_SEQUENCES
    if size > nbytes - nbytes // _LEAST_GAIN:
        return -1
    at = _write_number(out, at, _COMPRESSED << 1 | size << 3, _BLOCK_HEADER)
    kind = _COMPRESSED if tree_nbytes else _TREELESS
    header = kind | _FOUR_LONG_STREAMS << 2 | nbytes << 4 | literals << 22
    at = _write_number(out, at, header, _LITERALS_HEADER)
    at = _copy(streams, 0, tree_nbytes, out, at)
    at = _write_number(out, at, a | b << 16 | c << 32, _JUMPS)
    at = _copy(streams, rooms, a, out, at)
    at = _copy(streams, rooms + STREAM_ROOM, b, out, at)
    at = _copy(streams, rooms + 2 * STREAM_ROOM, c, out, at)
    at = _copy(streams, rooms + 3 * STREAM_ROOM, d, out, at)
    return _write_number(out, at, 0, _NO_SEQUENCES)


@kernel
def _write_segment(
    segment: np.ndarray,
    out: np.ndarray,
    at: int,
    sizes: np.ndarray,
    tree_nbytes: int,
    table: np.ndarray,
    streams: np.ndarray,
) -> int:
    """Returns where its blocks end. tree_nbytes: 0 to store all of them as they are."""
    is_coded = tree_nbytes > 0
    for block in range(sizes.size):
        begun = at
        start = block * BLOCK_NBYTES
        stop = min(start + BLOCK_NBYTES, segment.size)
        coded = (stop - start) // 16 * 16 if is_coded else 0
        if coded > 0:
            end = _write_coded(segment, start, coded, tree_nbytes, table, streams, out, at)
            if end < 0:
                coded = 0
            else:
                at = end
                tree_nbytes = 0  # known from here on
        at = _write_raw(segment, start + coded, stop - start - coded, out, at)
        sizes[block] = at - begun
    return at
