"""A Huffman code as zstd stores it: its weights, compressed by finite state entropy (RFC 8878, 4.1 and 4.2.1).

The weight of a symbol is longest length + 1 - its own length, or 0 for a symbol without a code. The weight of the last
symbol with a code follows from the others and is not stored, nor are those of the symbols after it.
"""

from __future__ import annotations

import numpy as np

from arrowquant_dist.kernels.compile import kernel
from arrowquant_dist.kernels.zstd.huffman import MAX_BITS, SYMBOLS

MAX_TREE_NBYTES = 128  # including the byte that says how many follow
_TABLE_LOG = 6  # the maximum for weights, so that each of them can get a state
_STATES = 1 << _TABLE_LOG
_WEIGHTS = MAX_BITS + 1
_LEAST_NUMBERS = 3  # weights, so that two states can alternate

# offsets of the parts of the scratch memory
_WEIGHT, _SHARE, _STATE, _SPREAD, _NEXT, _BITS, _FIND, _FIELDS = 0, 256, 272, 336, 400, 416, 432, 448
TREE_SCRATCH = _FIELDS + 2 * SYMBOLS  # int64


@kernel
def _pack(fields: np.ndarray, count: int, out: np.ndarray, at: int) -> int:
    """Writes fields (value << 8 | bits) one after the other, from the low bits up, to out[at:]. Returns where they
    end."""
    held = 0
    bits = 0
    for i in range(count):
        width = fields[i] & 255
        held |= ((fields[i] >> 8) & ((1 << width) - 1)) << bits
        bits += width
        while bits >= 8:
            out[at] = held & 255
            at += 1
            held >>= 8
            bits -= 8
    if bits > 0:
        out[at] = held
        at += 1
    return at


@kernel
def _bit_length(value: int) -> int:
    length = 0
    while value >> length:
        length += 1
    return length


@kernel
def _share_states(weight: np.ndarray, share: np.ndarray) -> None:
    """weight: int64 [n]. share: int64 [_WEIGHTS], receives the number of the _STATES for each weight, at least one for
    weights that occur."""
    share[:_WEIGHTS] = 0
    for i in range(weight.size):
        share[weight[i]] += 1
    left = _STATES
    most = 0
    for w in range(_WEIGHTS):
        if share[w] > 0:
            share[w] = max(share[w] * _STATES // weight.size, 1)
            left -= share[w]
            if share[w] > share[most]:
                most = w
    share[most] += left


@kernel
def _describe_shares(share: np.ndarray, fields: np.ndarray) -> int:
    """The table's description (RFC 8878, 4.1.1) as fields. Returns their number."""
    fields[0] = (_TABLE_LOG - 5) << 8 | 4
    count = 1
    remaining = _STATES + 1
    threshold = _STATES
    width = _TABLE_LOG + 1
    w = 0
    while remaining > 1:
        spare = 2 * threshold - 1 - remaining  # numbers below it take one bit less
        number = share[w] + 1
        remaining -= share[w]
        if number >= threshold:
            number += spare
        fields[count] = number << 8 | (width - 1 if number < spare else width)
        count += 1
        if share[w] == 0:  # how many more zeros follow: 3 means three and what comes next
            zeros = 0
            while share[w + 1 + zeros] == 0:
                zeros += 1
            w += zeros
            while zeros >= 0:
                fields[count] = min(zeros, 3) << 8 | 2
                count += 1
                zeros -= 3
        w += 1
        while remaining < threshold:
            width -= 1
            threshold >>= 1
    return count


@kernel
def _make_states(
    share: np.ndarray,
    state: np.ndarray,
    spread: np.ndarray,
    start: np.ndarray,
    bits: np.ndarray,
    find: np.ndarray,
) -> None:
    """Makes the encoder's tables. state[find[w] + s]: the next state when weight w is encoded in a state whose upper
    bits are s; a decoder reads w from it, and finds the former state by the lower bits that were written. bits[w]:
    (state + bits[w]) >> 16 is the number of these lower bits."""
    step = (_STATES >> 1) + (_STATES >> 3) + 3
    at = 0
    total = 0
    for w in range(_WEIGHTS):
        for _ in range(share[w]):
            spread[at] = w
            at = (at + step) & (_STATES - 1)
        start[w] = total
        if share[w] > 0:
            most = _TABLE_LOG - (_bit_length(share[w] - 1) - 1 if share[w] > 1 else 0)
            bits[w] = (most << 16) - (share[w] << most)
            find[w] = total - share[w]
        total += share[w]
    for u in range(_STATES):
        w = spread[u]
        state[start[w]] = _STATES + u
        start[w] += 1


@kernel
def _first_state(state: np.ndarray, bits: int, find: int) -> int:
    count = (bits + (1 << 15)) >> 16
    return state[(((count << 16) - bits) >> count) + find]


@kernel
def write_tree(lengths: np.ndarray, scratch: np.ndarray, out: np.ndarray) -> int:
    """Writes the description of a code to the first bytes of `out`. Returns its size; 0 if it would be too large, or if
    all weights but the last are equal, which this form cannot express.

    lengths: int64 [256], a complete code, each at most MAX_BITS, 0 for symbols without a code. scratch: int64
    [TREE_SCRATCH]. out: uint8, with room for 2 · MAX_TREE_NBYTES.
    """
    share = scratch[_SHARE:_STATE]
    state = scratch[_STATE:_SPREAD]
    bits = scratch[_BITS:_FIND]
    find = scratch[_FIND:_FIELDS]
    fields = scratch[_FIELDS:]
    longest = 0
    numbers = 0
    for symbol in range(SYMBOLS):
        longest = max(longest, lengths[symbol])
        numbers = symbol if lengths[symbol] > 0 else numbers
    weight = scratch[_WEIGHT : _WEIGHT + numbers]
    differs = False
    for symbol in range(numbers):
        weight[symbol] = longest + 1 - lengths[symbol] if lengths[symbol] > 0 else 0
        differs = differs or weight[symbol] != weight[0]
    if numbers < _LEAST_NUMBERS or not differs:
        return 0
    _share_states(weight, share)
    end = _pack(fields, _describe_shares(share, fields), out, 1)
    _make_states(share, state, scratch[_SPREAD:_NEXT], scratch[_NEXT:_BITS], bits, find)
    # two states alternate, from the last weight to the first
    w = weight[numbers - 1]
    turn = _first_state(state, bits[w], find[w])
    w = weight[numbers - 2]
    other = _first_state(state, bits[w], find[w])
    count = 0
    for i in range(numbers - 3, -1, -1):
        w = weight[i]
        width = (turn + bits[w]) >> 16
        fields[count] = turn << 8 | width
        count += 1
        turn, other = other, state[(turn >> width) + find[w]]
    # the last state used was that of the first weight, which is read first and so written last
    fields[count] = turn << 8 | _TABLE_LOG
    fields[count + 1] = other << 8 | _TABLE_LOG
    fields[count + 2] = 1 << 8 | 1
    end = _pack(fields, count + 3, out, end)
    if end > MAX_TREE_NBYTES:
        return 0
    out[0] = end - 1
    return end
