"""Writes blocks of a zstd frame that consist of Huffman-coded literals only (RFC 8878, 3.1.1.3): any decoder reads
them, and they are written without a search for repetitions."""

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
    64  # blocks that share a code if it suits them all: making its table takes as long as encoding 3 of them
)
# Blocks get codes of their own if that saves at least one in so many of a segment's bytes.
_UNLIKE = 128
_LOOKS, _LOOK_NBYTES = 32, 64  # samples of a block, which show whether it is like the others
_NAT = 1 << 20  # entropies are counted in this fraction of a nat
_LOG_2, _ROOT_HALF, _LAST_ODD = 0.6931471805599453, 0.7071067811865476, 17
_STREAMS = 4
_RAW, _COMPRESSED, _TREELESS = 0, 2, 3  # types of blocks and literals; _TREELESS: code of the block before
_FOUR_LONG_STREAMS = 3
_BLOCK_HEADER, _LITERALS_HEADER, _JUMPS, _NO_SEQUENCES = 3, 5, 6, 1
_TREE_ROOM = 2 * MAX_TREE_NBYTES
_LEAST_GAIN = 64  # zstd's own rule: blocks that save less than 1/64 stay uncompressed, to be read faster
_SAMPLES, _SAMPLE_NBYTES = 512, 256  # samples of a segment, from which its code is made
_FEW = 16  # of 256 bytes: so many unused codes of 11 bits lengthen the others by a hundredth
_LEAST_SYMBOLS = 2
_LANES = 4  # separate counts, so that a byte that occurs twice in a row does not have to wait


@dataclass(frozen=True, slots=True, eq=False)
class Workspace:
    """Scratch memory of `write_blocks`, 950 KB; each thread needs its own."""

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
    """Upper bound of the bytes that `write_blocks` writes: all uncompressed, with the last ones in an extra block."""
    return nbytes + _BLOCK_HEADER * (block_count(nbytes) + 1)


def write_blocks(
    values: np.ndarray, out: np.ndarray, at: int, sizes: np.ndarray, workspace: Workspace
) -> int:
    """Writes blocks that hold `values`, none of them marked as the last, to out[at:]. Returns where they end.

    values: uint8 [n]. out: uint8, with room for blocks_bound(n). sizes: int64 [block_count(n)], receives the size of
    each block in bytes.
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
    """Whether a code for each block makes a segment smaller, judged by samples of each block. counts: Workspace.blocks.

    If steps of an embedding's rows depend on how often rows are read, they are finer at one end than at the other: for
    MiniLM's at 8.5 MB a code for each block saves 2.9 %, over all layers 1.3 %. The entropy of n sampled bytes with k
    distinct values is (k - 1) / 2n nats less than that of the data they are sampled from.
    """
    blocks = block_count(segment.size)
    if blocks < 2:
        return False
    own = counts[:blocks]
    _count_looks(segment, own)
    if np.count_nonzero(own, axis=1).min() < _LEAST_SYMBOLS:
        return False  # such a block has no code of its own, and would be stored uncompressed
    together = own.sum(axis=0)
    # the size with ideal codes: Σ n log(total / n)
    apart = int(_N_LOG_N[own.sum(axis=1)].sum() - _N_LOG_N[own].sum())
    shared = int(_n_log_n(together.sum()) - _n_log_n(together).sum())
    kinds = int(np.count_nonzero(own) - blocks - (np.count_nonzero(together) - 1))
    return shared - apart - kinds * _NAT // 2 > shared // _UNLIKE


def _n_log_n(counts: np.ndarray) -> np.ndarray:
    """n log n of each count: int64, in units of 1 / _NAT nats. counts: int64, below 2^32.

    It only uses additions, multiplications and divisions, whose results are the same on every machine, while numpy's
    logarithms differ in the last digit from CPU to CPU. The error is at most 1e-15.
    """
    mantissa, power = np.frexp(np.maximum(counts, 1).astype(np.float64))
    part = (mantissa - _ROOT_HALF) / (mantissa + _ROOT_HALF)  # for log(mantissa / √½), within 0.172
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
    """counts: int64 [blocks, 256], receives how often each byte occurs in _LOOKS samples of each block."""
    counts[:, :] = 0
    for block in range(counts.shape[0]):
        start = block * BLOCK_NBYTES
        nbytes = min(BLOCK_NBYTES, segment.size - start)
        for look in range(_LOOKS):
            first = start + look * nbytes // _LOOKS
            for i in range(first, min(first + _LOOK_NBYTES, start + nbytes)):
                counts[block, segment[i]] += 1


def _make_code(segment: np.ndarray, w: Workspace) -> int:
    """Makes the code for a segment: its table, and its tree in the first bytes of `streams`. Returns the size of the
    tree, or 0 if the code would save too little."""
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
    """counts: int64 [_LANES, 256], receives in its first row how often each byte occurs in the sample, plus one, so
    that every byte gets a code.

    Leaving out bytes that the sample does not contain, and starting again when one occurs, cost a fifth of the speed,
    and made codes of weights no smaller if nearly all bytes occur, as some row contains each of them. If _FEW bytes or
    more are missing from the sample, all bytes are counted, and those that do not occur get no code: with 240 unused
    symbols of 11 bits each, codes of 2.5 bits took 0.2 bits more.
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
    """counts: int64 [_LANES, 256], receives in its first row how often each byte occurs."""
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
    """Writes a number, little-endian. Returns where it ends."""
    for i in range(nbytes):
        out[at + i] = (number >> (8 * i)) & 255
    return at + nbytes


@kernel
def _copy(source: np.ndarray, start: int, nbytes: int, out: np.ndarray, at: int) -> int:
    """Copies bytes. Returns where the copy ends."""
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
    """Writes a compressed block of nbytes values, a multiple of 16. Its tree is in streams[:tree_nbytes]; if that is
    empty, it uses the tree of the block before. Returns where the block ends; -1 if it saves too little."""
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
    """Writes the blocks of a segment. Returns where they end. tree_nbytes: 0 to store all of them uncompressed."""
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
                tree_nbytes = 0  # the decoder knows it from here on
        at = _write_raw(segment, start + coded, stop - start - coded, out, at)
        sizes[block] = at - begun
    return at
