"""Blocks that were read together, decoded together.

Whoever calls a kernel gives Python's lock away and waits to have it back, which other threads hold while they are about
small layers of their own: one call for a batch of layers takes the place of one for each.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from arrowquant_dist.arena import fresh
from arrowquant_dist.config import BITS
from arrowquant_dist.dataset.layers import StoredBlock
from arrowquant_dist.dataset.values import Values, check_finite_scales
from arrowquant_dist.errors import ArrowQuantError, CorruptWeights
from arrowquant_dist.format.row import Blobs
from arrowquant_dist.tensor import DECODED_BITS
from arrowquant_dist.tensor.source import read_only

_NO_ZERO_POINTS = -1


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """A whole block in memory. values: its own, verified but for the scales. places: where they are in that memory."""

    block: StoredBlock
    values: Values
    places: Blobs[int]
    url: str


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """turn: the number of the load that it is of. out: bits, as the kernel has them."""

    turn: int
    held: Held
    out: np.ndarray


class Later(threading.local):
    """What the thread that asks has put off until its batch is through. turn: the number of the load that is next."""

    def __init__(self) -> None:
        self.turn = 0
        self._memory = fresh(0)
        self._waiting: defaultdict[str, list[_Waiting]] = defaultdict(list)

    def begin(self, memory: np.ndarray) -> None:
        """Nothing is put off yet. memory: uint8, where all of the next batch is."""
        self.turn, self._memory = 0, memory
        self._waiting.clear()

    def put_off(self, held: Held, out: np.ndarray, dtype: str) -> bool:
        """Whether `decode` will fill `out` (uint8), and look at the scales; False where both is for the caller to do
        at once."""
        header = held.block.header
        is_decoded = header.quant_type in BITS and header.quant_axis == 0 and dtype in DECODED_BITS
        if not is_decoded or not out.size:
            return False
        self._waiting[dtype].append(_Waiting(self.turn, held, out.view(DECODED_BITS[dtype])))
        return True

    def decode(self) -> dict[int, ArrowQuantError]:
        """Fills what was put off. Returns what is wrong, by turn; nothing of a later turn need be filled then."""
        from arrowquant_dist.kernels.decode import MOST_BLOCKS

        failed: dict[int, ArrowQuantError] = {}
        for waiting in self._waiting.values():
            for first in range(0, len(waiting), MOST_BLOCKS):
                some = waiting[first : first + MOST_BLOCKS]
                bad = _decode(self._memory, some)
                if bad >= 0:
                    failed.setdefault(some[bad].turn, _error_of(some[bad].held))
                    break
        self.begin(fresh(0))
        return failed


def _decode(memory: np.ndarray, blocks: Sequence[_Waiting]) -> int:
    """As decode_blocks."""
    from arrowquant_dist.kernels.decode import MOST_BLOCKS, decode_blocks

    table = np.array([_row(waiting.held) for waiting in blocks], np.int64)
    most_numbers = 2 * max(waiting.held.values.blobs.scales.size for waiting in blocks)
    most_columns = max(waiting.held.block.header.columns for waiting in blocks)
    numbers = np.empty(most_numbers, np.float32)
    outs = [waiting.out for waiting in blocks]
    outs += [outs[0][:0]] * (MOST_BLOCKS - len(outs))
    scratch = np.empty(most_columns + 8, np.uint8)
    bad: int = decode_blocks(read_only(memory), table, tuple(outs), numbers, numbers.view(np.uint8), scratch)
    return bad


def _row(held: Held) -> tuple[int, ...]:
    """Of the table of decode_blocks."""
    header, places, columns = held.block.header, held.places, held.block.header.columns
    zero_points = places.zero_points if held.values.blobs.zero_points.size else _NO_ZERO_POINTS
    return (
        places.data,
        places.scales,
        zero_points,
        BITS[header.quant_type],
        held.block.rows,
        columns,
        header.groups_per_row,
        header.group_size or columns,
    )


def _error_of(held: Held) -> ArrowQuantError:
    try:
        check_finite_scales(held.values, held.block, held.url)
    except CorruptWeights as error:
        return error
    raise AssertionError("a scale is finite here and was not there")  # nobody writes to that memory meanwhile
