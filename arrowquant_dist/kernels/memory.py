"""Access to bytes and machine words of a byte array: little-endian, at any offset, without bounds checks.

Each function is one LLVM instruction or call if Numba compiles and gives access to an array's address, else a loop over
bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from arrowquant_dist.kernels.compile import kernel
from arrowquant_dist.kernels.numba_private import data_pointer, has_pointers, is_interpreted, nothing

_WORD_NBYTES = 8


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, at: Any, width: int) -> Any:
    data = data_pointer(context, builder, array_type, array)
    return builder.bitcast(builder.gep(data, [at], inbounds=True), ir.IntType(width).as_pointer())


@intrinsic
def _load_pair_at_once(_typing: Any, array: Any, at: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], 16)
        return builder.zext(builder.load(pointer, align=1), ir.IntType(64))

    return types.uint64(array, at), codegen


@kernel
def _load_pair_by_bytes(array: np.ndarray, at: int) -> np.uint64:
    return np.uint64(array[at]) | np.uint64(array[at + 1]) << np.uint64(8)


@intrinsic
def _store_word_at_once(_typing: Any, array: Any, at: Any, word: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], 64)
        builder.store(args[2], pointer, align=1)
        return nothing(context)

    return types.void(array, at, word), codegen


@kernel
def _store_word_by_bytes(array: np.ndarray, at: int, word: np.uint64) -> None:
    for i in range(_WORD_NBYTES):
        array[at + i] = (word >> np.uint64(8 * i)) & np.uint64(255)


@intrinsic
def _copy_bytes_at_once(_typing: Any, source: Any, start: Any, nbytes: Any, out: Any, at: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        read = _pointer(context, builder, signature.args[0], args[0], args[1], 8)
        write = _pointer(context, builder, signature.args[3], args[3], args[4], 8)
        kinds = [read.type, write.type, args[2].type]
        copy = builder.module.declare_intrinsic("llvm.memcpy", kinds)
        builder.call(copy, [write, read, args[2], ir.Constant(ir.IntType(1), 0)])  # 0: not volatile
        return nothing(context)

    return types.void(source, start, nbytes, out, at), codegen


@kernel
def _copy_bytes_by_bytes(source: np.ndarray, start: int, nbytes: int, out: np.ndarray, at: int) -> None:
    for i in range(nbytes):
        out[at + i] = source[start + i]


_AT_ONCE = has_pointers() and not is_interpreted()

# (array, at) → uint64: array[at] | array[at + 1] << 8. array: uint8 [n].
load_pair = _load_pair_at_once if _AT_ONCE else _load_pair_by_bytes
# (array, at, word): stores the eight bytes of `word` (uint64) in array[at : at + 8]. array: uint8 [n].
store_word = _store_word_at_once if _AT_ONCE else _store_word_by_bytes
# (source, start, nbytes, out, at): copies source[start : start + nbytes] to out[at:], without overlap. Both uint8.
copy_bytes = _copy_bytes_at_once if _AT_ONCE else _copy_bytes_by_bytes
