"""Writes GGML's blocks of packed codes, with 16-bit numbers beside them, in one pass that writes each byte once.

A byte of such a block holds codes that are far apart in V2, whose bytes hold neighbouring codes. Vectors of eight bytes
are spread until each code is in a lane of its own, then shifted into place: CPUs have instructions for that, and it
takes as long as copying. A sequence of numpy operations on 64-bit words took 12 times as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir

from arrowquant_dist.kernels.native import Body, EachPiece, everywhere, load, makes_no_code, store

_AT_ONCE = 8  # bytes of a run
_DIMENSIONS = 5


@dataclass(frozen=True, slots=True)
class BlockBytes:
    """The layout of a block.

    bits: bits of a code. codes: offset of the first byte of the codes. nbytes: size of the codes in bytes. numbers:
    offsets of the 16-bit numbers.

    Codes of 8 bits are unchanged. For each 32 codes u of 4 bits, bytes are u[j] | u[j + 16] << 4. For each 128 codes u
    of 2 bits, a byte holds those at m, 32 + m, 64 + m and 96 + m, low bits first, as 3 - u.
    """

    bits: int
    codes: int
    nbytes: int
    numbers: tuple[int, ...]

    def fill(self, codes: np.ndarray, numbers: Sequence[np.ndarray], out: np.ndarray) -> None:
        """Fills blocks. codes: uint8 [five dimensions, nbytes], packed as in V2, low bits first. numbers: float16 [the
        same five dimensions] each. out: uint8 [the same five dimensions, bytes of a block]. Only the last dimension
        must be contiguous."""
        if makes_no_code():
            _fill_by_numpy(self, codes, numbers, out)
        else:
            _filler(self)(codes, *numbers, out)


@cache
def _filler(block: BlockBytes) -> EachPiece:
    return EachPiece(_body(block), arrays=len(block.numbers) + 2, dimensions=_DIMENSIONS)


def _body(block: BlockBytes) -> Body:
    def body(builder: ir.IRBuilder, addresses: Sequence[Any]) -> None:
        codes, *numbers, out = addresses
        for number, place in zip(numbers, block.numbers, strict=True):
            store(builder, load(builder, number, ir.IntType(16)), out, place)
        runs = 8 // block.bits
        for start in range(0, block.nbytes, _AT_ONCE * runs):
            together = _in_turns(builder, codes, start, block.bits)
            store(builder, together, out, block.codes + start)

    return body


def _in_turns(builder: ir.IRBuilder, codes: Any, start: int, bits: int) -> Any:
    """The block's bytes for eight bytes of codes from each of several runs: as many runs as a byte has codes, one after
    another from byte `start` on."""
    runs = 8 // bits
    narrow = ir.VectorType(ir.IntType(8), _AT_ONCE)
    if runs == 1:
        return load(builder, codes, narrow, start)
    wide = ir.VectorType(ir.IntType(8 * runs), _AT_ONCE)
    one_a_byte = everywhere(wide, int.from_bytes(bytes([(1 << bits) - 1] * runs), "little"))
    together = everywhere(wide, 0)
    for run in range(runs):
        lanes = spread = builder.zext(load(builder, codes, narrow, start + _AT_ONCE * run), wide)
        for code in range(1, runs):
            spread = builder.or_(spread, builder.shl(lanes, everywhere(wide, (8 - bits) * code)))
        alone = builder.and_(spread, one_a_byte)
        together = builder.or_(together, builder.shl(alone, everywhere(wide, bits * run)))
    return (
        builder.not_(together) if bits == 2 else together
    )  # 3 - u: all bits of a code are inverted in this case


def _fill_by_numpy(
    block: BlockBytes, codes: np.ndarray, numbers: Sequence[np.ndarray], out: np.ndarray
) -> None:
    """The same, for processes that make no machine code."""
    for number, place in zip(numbers, block.numbers, strict=True):
        out[..., place : place + 2].view("<f2")[..., 0] = number
    runs, mask = 8 // block.bits, np.uint8((1 << block.bits) - 1)
    for start in range(0, block.nbytes, _AT_ONCE * runs):
        for code in range(runs):
            made = np.zeros((*codes.shape[:-1], _AT_ONCE), np.uint8)
            for run in range(runs):
                first = start + _AT_ONCE * run
                found = codes[..., first : first + _AT_ONCE] >> np.uint8(block.bits * code)
                made |= (found & mask) << np.uint8(block.bits * run)
            places = slice(block.codes + start + code, block.codes + start + _AT_ONCE * runs, runs)
            out[..., places] = ~made if block.bits == 2 else made
