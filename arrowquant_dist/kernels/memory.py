"""Bytes and machine words anywhere in a byte array: little-endian, at any offset, without a check of the bounds."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, at: Any, width: int) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(cgutils.gep_inbounds(builder, data, at), ir.IntType(width).as_pointer())


@intrinsic
def load_pair(_typing: Any, array: Any, at: Any) -> Any:
    """uint64: array[at] | array[at + 1] << 8. array: uint8 [n]."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], 16)
        return builder.zext(builder.load(pointer, align=1), ir.IntType(64))

    return types.uint64(array, at), codegen


@intrinsic
def store_word(_typing: Any, array: Any, at: Any, word: Any) -> Any:
    """The eight bytes of `word` (uint64) to array[at : at + 8]. array: uint8 [n]."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], 64)
        builder.store(args[2], pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, at, word), codegen


@intrinsic
def copy_bytes(_typing: Any, source: Any, start: Any, nbytes: Any, out: Any, at: Any) -> Any:
    """source[start : start + nbytes] to out[at:], which does not overlap it. Both uint8 [n]."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        read = _pointer(context, builder, signature.args[0], args[0], args[1], 8)
        write = _pointer(context, builder, signature.args[3], args[3], args[4], 8)
        cgutils.raw_memcpy(builder, write, read, args[2], 1)
        return context.get_dummy_value()

    return types.void(source, start, nbytes, out, at), codegen
