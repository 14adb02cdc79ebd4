"""Bits to float32 and back, and a few single operations that cannot be written exactly and vectorizably in Numba.

Each is one or two LLVM instructions, so that loops over them are vectorized; none depends on the CPU's model.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from arrowquant_dist.kernels import interpreted
from arrowquant_dist.kernels.compile import instruction
from arrowquant_dist.kernels.numba_private import converts_halves

_F32 = ir.FloatType()
_I32 = ir.IntType(32)


def _half_to_float(builder: Any, half: Any) -> Any:
    """The bits of a float16 → float32, by integer arithmetic."""
    wide = builder.zext(half, _I32)
    size = builder.and_(wide, ir.Constant(_I32, 0x7FFF))
    shifted = builder.shl(size, ir.Constant(_I32, 13))
    denormal = builder.fmul(builder.uitofp(size, _F32), ir.Constant(_F32, 2.0**-24))
    normal = builder.add(shifted, ir.Constant(_I32, (127 - 15) << 23))
    special = builder.or_(shifted, ir.Constant(_I32, 0x7F800000))
    bits = builder.select(
        builder.icmp_unsigned("<", size, ir.Constant(_I32, 0x400)), builder.bitcast(denormal, _I32), normal
    )
    bits = builder.select(builder.icmp_unsigned(">=", size, ir.Constant(_I32, 0x7C00)), special, bits)
    sign = builder.shl(builder.and_(wide, ir.Constant(_I32, 0x8000)), ir.Constant(_I32, 16))
    return builder.bitcast(builder.or_(bits, sign), _F32)


def _float_to_half(builder: Any, value: Any) -> Any:
    """float32 → the bits of a float16, half to even, by integer arithmetic. |value| ≤ 65504."""
    bits = builder.bitcast(value, _I32)
    size = builder.and_(bits, ir.Constant(_I32, 0x7FFFFFFF))
    odd = builder.and_(builder.lshr(size, ir.Constant(_I32, 13)), ir.Constant(_I32, 1))
    rounded = builder.add(builder.add(size, ir.Constant(_I32, 0xFFF - ((127 - 15) << 23))), odd)
    normal = builder.lshr(rounded, ir.Constant(_I32, 13))
    scaled = builder.fmul(builder.bitcast(size, _F32), ir.Constant(_F32, 2.0**24))
    steps = builder.call(builder.module.declare_intrinsic("llvm.rint", [_F32]), [scaled])
    is_denormal = builder.icmp_unsigned("<", size, ir.Constant(_I32, (127 - 14) << 23))
    half = builder.select(is_denormal, builder.fptosi(steps, _I32), normal)
    sign = builder.and_(builder.lshr(bits, ir.Constant(_I32, 16)), ir.Constant(_I32, 0x8000))
    return builder.trunc(builder.or_(half, sign), ir.IntType(16))


def float_to_bfloat16(builder: Any, value: Any) -> Any:
    """float32 → the bits of a bfloat16, half to even; inf beyond its range. `value` is not NaN."""
    bits = builder.bitcast(value, _I32)
    odd = builder.and_(builder.lshr(bits, ir.Constant(_I32, 16)), ir.Constant(_I32, 1))
    rounded = builder.add(builder.add(bits, ir.Constant(_I32, 0x7FFF)), odd)
    return builder.trunc(builder.lshr(rounded, ir.Constant(_I32, 16)), ir.IntType(16))


def float_to_float16(context: Any, builder: Any, value: Any) -> Any:
    """float32 → the bits of a float16, half to even. |value| ≤ 65504."""
    if not converts_halves(context):
        return _float_to_half(builder, value)
    return builder.bitcast(builder.fptrunc(value, ir.HalfType()), ir.IntType(16))


@instruction(interpreted.to_float32)
def to_float32(_typing: Any, bits: Any) -> Any:
    """The float32 value of source bits: int32 → float32, uint16 → bfloat16, int16 → float16. Exact."""

    def from_float32(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _F32)

    def from_bfloat16(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.shl(builder.zext(args[0], _I32), ir.Constant(_I32, 16)), _F32)

    def from_float16(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        if not converts_halves(context):
            return _half_to_float(builder, args[0])
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), _F32)

    codegens = {types.int32: from_float32, types.uint16: from_bfloat16, types.int16: from_float16}
    return types.float32(bits), codegens[bits]


@instruction(interpreted.magnitude)
def magnitude(_typing: Any, bits: Any) -> Any:
    """The bits without the sign, as unsigned: grows with |value|; inf and NaN are the largest."""
    unsigned = types.uint32 if bits == types.int32 else types.uint16

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        kind = args[0].type
        return builder.and_(args[0], ir.Constant(kind, (1 << (kind.width - 1)) - 1))

    return unsigned(bits), codegen


@instruction(interpreted.ordered)
def ordered(_typing: Any, bits: Any) -> Any:
    """A signed integer that sorts like the value (-0 below +0). On signed bits this is its own inverse."""
    signed = types.int32 if bits == types.int32 else types.int16

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        kind = args[0].type
        sign = builder.ashr(args[0], ir.Constant(kind, kind.width - 1))
        return builder.xor(args[0], builder.and_(sign, ir.Constant(kind, (1 << (kind.width - 1)) - 1)))

    return signed(bits), codegen


@instruction(interpreted.as_bits)
def as_bits(_typing: Any, value: Any, like: Any) -> Any:
    """`value`, an integer as wide as `like`, with the type of `like`: turns a magnitude back into source bits."""

    def codegen(_context: Any, _builder: Any, _signature: Any, args: Any) -> Any:
        return args[0]

    return like(value, like), codegen


def _pick(comparison: str) -> Any:
    def codegen(_context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = signature.args[0]
        if kind == types.float32:
            chosen = builder.fcmp_ordered(comparison, args[0], args[1])
        elif kind.signed:
            chosen = builder.icmp_signed(comparison, args[0], args[1])
        else:
            chosen = builder.icmp_unsigned(comparison, args[0], args[1])
        return builder.select(chosen, args[0], args[1])

    return codegen


@instruction(interpreted.larger)
def larger(_typing: Any, left: Any, _right: Any) -> Any:
    """max of two numbers of one type, without Numba's widening and NaN rules; `right` if they are equal."""
    return left(left, left), _pick(">")


@instruction(interpreted.smaller)
def smaller(_typing: Any, left: Any, _right: Any) -> Any:
    """min of two numbers of one type; `right` if they are equal."""
    return left(left, left), _pick("<")


@instruction(interpreted.round_half_even)
def round_half_even(_typing: Any, _value: Any) -> Any:
    """float32 rounded to an integer, ties to even."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.call(builder.module.declare_intrinsic("llvm.rint", [_F32]), args)

    return types.float32(types.float32), codegen


@instruction(interpreted.to_code)
def to_code(_typing: Any, _value: Any) -> Any:
    """An integral float32 in [-128, 127] as a byte in two's complement."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.trunc(builder.fptosi(args[0], _I32), ir.IntType(8))

    return types.uint8(types.float32), codegen


@instruction(interpreted.from_code)
def from_code(_typing: Any, _code: Any) -> Any:
    """A byte in two's complement as float32."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.sitofp(builder.sext(args[0], _I32), _F32)

    return types.float32(types.uint8), codegen


@instruction(interpreted.float32_bits)
def float32_bits(_typing: Any, _value: Any) -> Any:
    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _I32)

    return types.int32(types.float32), codegen


@instruction(interpreted.to_bits)
def to_bits(_typing: Any, _value: Any, like: Any) -> Any:
    """float32 → bits of the dtype that `like`'s integer type stands for, rounded half to even and clamped to the
    dtype's finite range (a decoded weight never becomes inf)."""

    def clamp(builder: Any, value: Any, limit: float) -> Any:
        for bound, comparison in ((limit, "<"), (-limit, ">")):
            constant = ir.Constant(_F32, bound)
            value = builder.select(builder.fcmp_ordered(comparison, value, constant), value, constant)
        return value

    def float32(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _I32)

    def bfloat16(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return float_to_bfloat16(builder, clamp(builder, args[0], 3.3895313892515355e38))

    def float16(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return float_to_float16(context, builder, clamp(builder, args[0], 65504.0))

    codegens = {types.int32: float32, types.uint16: bfloat16, types.int16: float16}
    return like(types.float32, like), codegens[like]
