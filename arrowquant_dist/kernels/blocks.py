"""GGML's blocks of packed codes, and numbers of 16 bits beside them, each written once and in one pass.

A byte of such a block has codes that lie far from each other, one of V2 those that are side by side. Vectors of eight
bytes are spread until each code is in a lane of its own, then shifted to their places: CPUs have instructions for that,
and it takes as long as copying. A run of numpy's operations on words of 64 bits took 12 times as long.
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
    """Where things are in a block. bits: of a code. codes: at which byte they begin. nbytes: of them. numbers: at which
    bytes there is one of 16 bits.

    Codes of 8 bits stay as they are. Of 32 codes u of 4 bits, bytes are u[j] | u[j + 16] << 4. Of each 128 codes u of 2
    bits, bytes have those of places m, 32 + m, 64 + m and 96 + m, low bits first, as 3 - u.
    """

    bits: int
    codes: int
    nbytes: int
    numbers: tuple[int, ...]

    def fill(self, codes: np.ndarray, numbers: Sequence[np.ndarray], out: np.ndarray) -> None:
        """codes: uint8 [five dimensions, nbytes], as V2 packs them, low bits first. numbers: float16 [the five
        dimensions] each. out: uint8 [the five dimensions, bytes of a block]. Any strides, but for the last one."""
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
    """Eight bytes of each of as many runs as a byte has codes, from byte `start` on; what they become."""
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
    )  # 3 - u: all of a code's bits the other way round


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
