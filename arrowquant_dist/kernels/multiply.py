"""Products of float32 matrices; each number is computed by one chain of fused multiply-adds in the order of its terms.

So results are the same to the bit on every machine, whatever its vectors, and only the calling thread works on them.
OpenBLAS, where it uses its AVX2 kernels, gave other last bits with two threads than with one, and so other codes; and
it would start as many threads for each worker as the machine has CPUs. On one thread both are equally fast (92 and 89
GFlop/s, 4096 × 128 times 128 × 256, with AVX-512).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from arrowquant_dist.kernels import interpreted
from arrowquant_dist.kernels.compile import instruction, kernel
from arrowquant_dist.kernels.numba_private import has_wide_vectors

_HEIGHT = 8  # rows of a tile of the product, whose sums stay in registers
_WIDTH = 32  # columns of the right matrix that are packed side by side
_DEPTH = (
    128  # terms that are added up in registers; so much of the right matrix fits into the first-level cache
)

_F32 = ir.FloatType()
_I64 = ir.IntType(64)


def scratch_size(columns: int) -> int:
    """Number of float32 numbers of scratch memory that a product with so many columns takes."""
    return _DEPTH * (_HEIGHT + -(-columns // _WIDTH) * _WIDTH) + _HEIGHT * _WIDTH


@instruction(interpreted.strip_width)
def _strip_width(_typing: Any) -> Any:
    """Columns of a tile: two vectors of 16 numbers if the CPU has 32 such registers, else one vector of 8 numbers."""

    def codegen(context: Any, _builder: Any, _signature: Any, _args: Any) -> Any:
        return ir.Constant(_I64, 32 if has_wide_vectors(context) else 8)

    return types.int64(), codegen


@instruction(interpreted.add_tile)
def _add_tile(
    _typing: Any, left: Any, right: Any, right_at: Any, out: Any, out_at: Any, stride: Any, depth: Any
) -> Any:
    """out[i, j] += Σ_k left[k, i] · right[k, j] for i < _HEIGHT, j < _strip_width().

    left: float32 [depth · _HEIGHT], packed. right: float32 [depth · _WIDTH], packed; the strip begins at `right_at`.
    out: float32, C order, from `out_at` on, with `stride` numbers from row to row.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes, vectors = (16, 2) if has_wide_vectors(context) else (8, 1)
        kind = ir.VectorType(_F32, lanes)

        def data(index: int) -> Any:
            made = context.make_array(signature.args[index])(context, builder, args[index])
            return builder.bitcast(made.data, _F32.as_pointer())

        def vector_at(pointer: Any, at: Any) -> Any:
            return builder.bitcast(builder.gep(pointer, [at]), kind.as_pointer())

        def number(value: int) -> Any:
            return ir.Constant(_I64, value)

        none = ir.Constant(kind, ir.Undefined)
        all_first = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
        name, known = f"llvm.fma.v{lanes}f32", builder.module.globals
        fma = known.get(name) or ir.Function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
        left_data, right_data, out_data = data(0), data(1), data(3)
        places = []
        for i in range(_HEIGHT):
            row = builder.add(args[4], builder.mul(args[5], number(i)))
            places += [vector_at(out_data, builder.add(row, number(lanes * v))) for v in range(vectors)]
        begun = builder.block
        loop = builder.append_basic_block("terms")
        done = builder.append_basic_block("summed")
        first = [builder.load(place, align=4) for place in places]
        builder.cbranch(builder.icmp_signed(">", args[6], number(0)), loop, done)

        builder.position_at_end(loop)
        k = builder.phi(_I64)
        sums = [builder.phi(kind) for _ in places]
        from_right = builder.add(args[2], builder.mul(k, number(_WIDTH)))
        columns = [
            builder.load(vector_at(right_data, builder.add(from_right, number(lanes * v))), align=4)
            for v in range(vectors)
        ]
        from_left = builder.mul(k, number(_HEIGHT))
        added = []
        for i in range(_HEIGHT):
            value = builder.load(builder.gep(left_data, [builder.add(from_left, number(i))]), align=4)
            one = builder.insert_element(none, value, ir.Constant(ir.IntType(32), 0))
            same = builder.shuffle_vector(one, none, all_first)
            added += [builder.call(fma, [same, columns[v], sums[i * vectors + v]]) for v in range(vectors)]
        following = builder.add(k, number(1))
        builder.cbranch(builder.icmp_signed("<", following, args[6]), loop, done)

        builder.position_at_end(done)
        found = [builder.phi(kind) for _ in places]
        for place, total in zip(places, found, strict=True):
            builder.store(total, place, align=4)
        k.add_incoming(number(0), begun)
        k.add_incoming(following, loop)
        for start, total, new, last in zip(first, sums, added, found, strict=True):
            total.add_incoming(start, begun)
            total.add_incoming(new, loop)
            last.add_incoming(start, begun)
            last.add_incoming(new, loop)
        return context.get_dummy_value()

    return types.void(left, right, right_at, out, out_at, stride, depth), codegen


@kernel
def _pack_right(
    right: np.ndarray, first: int, column: int, columns: int, depth: int, packed: np.ndarray
) -> None:
    """packed: float32 [≥ depth · _WIDTH], rows of _WIDTH numbers; zeros from `columns` on."""
    for k in range(depth):
        for j in range(columns):
            packed[k * _WIDTH + j] = right[first + k, column + j]
        for j in range(columns, _WIDTH):
            packed[k * _WIDTH + j] = np.float32(0.0)


@kernel
def _pack_left(
    left: np.ndarray, row: int, first: int, rows: int, depth: int, sign: np.float32, packed: np.ndarray
) -> None:
    """packed: float32 [≥ depth · _HEIGHT]; [k, i] becomes sign · left[row + i, first + k], or 0 from `rows` on."""
    for i in range(_HEIGHT):
        for k in range(depth):
            packed[k * _HEIGHT + i] = sign * left[row + i, first + k] if i < rows else np.float32(0.0)


@kernel
def _pack_turned_left(
    left: np.ndarray, row: int, first: int, rows: int, depth: int, sign: np.float32, packed: np.ndarray
) -> None:
    """Like _pack_left, with left[first + k, row + i]."""
    for k in range(depth):
        for i in range(_HEIGHT):
            packed[k * _HEIGHT + i] = sign * left[first + k, row + i] if i < rows else np.float32(0.0)


@kernel
def _add_edge(
    left: np.ndarray,
    right: np.ndarray,
    depth: int,
    rows: int,
    columns: int,
    out: np.ndarray,
    edge: np.ndarray,
) -> None:
    """Adds to a tile that reaches beyond `out`, by way of `edge`, float32 [_HEIGHT · _WIDTH]. left, right: packed."""
    for i in range(_HEIGHT):
        for j in range(_WIDTH):
            edge[i * _WIDTH + j] = out[i, j] if i < rows and j < columns else np.float32(0.0)
    strip = 0
    while strip < _WIDTH:
        _add_tile(left, right, strip, edge, strip, _WIDTH, depth)
        strip += _strip_width()
    for i in range(rows):
        for j in range(columns):
            out[i, j] = edge[i * _WIDTH + j]


@kernel
def add_product(
    left: np.ndarray,
    row: int,
    first: int,
    turned: np.bool_,
    sign: np.float32,
    right: np.ndarray,
    out: np.ndarray,
    column: int,
    columns: int,
    scratch: np.ndarray,
) -> None:
    """out[i, column + j] += sign · Σ_k left[row + i, first + k] · right[k, j], if `turned` of left[first + k, row + i].

    left: float32 [any, any]; right: float32 [depth, ≥ columns]; out: float32 [rows, any]; all in C order. scratch:
    float32 [scratch_size(columns)].
    """
    rows, depth, stride = out.shape[0], right.shape[0], out.shape[1]
    flat = out.reshape(-1)
    packed_left = scratch[: _DEPTH * _HEIGHT]
    edge = scratch[_DEPTH * _HEIGHT : _DEPTH * _HEIGHT + _HEIGHT * _WIDTH]
    packed = scratch[_DEPTH * _HEIGHT + _HEIGHT * _WIDTH :]
    for k in range(0, depth, _DEPTH):
        terms = min(_DEPTH, depth - k)
        for j in range(0, columns, _WIDTH):
            _pack_right(right, k, j, min(_WIDTH, columns - j), terms, packed[_DEPTH * j :])
        for i in range(0, rows, _HEIGHT):
            high = min(_HEIGHT, rows - i)
            if turned:
                _pack_turned_left(left, row + i, first + k, high, terms, sign, packed_left)
            else:
                _pack_left(left, row + i, first + k, high, terms, sign, packed_left)
            for j in range(0, columns, _WIDTH):
                packed_right, wide = packed[_DEPTH * j :], min(_WIDTH, columns - j)
                if high < _HEIGHT or wide < _WIDTH:
                    _add_edge(packed_left, packed_right, terms, high, wide, out[i:, column + j :], edge)
                    continue
                strip = 0
                while strip < _WIDTH:
                    at = i * stride + column + j + strip
                    _add_tile(packed_left, packed_right, strip, flat, at, stride, terms)
                    strip += _strip_width()
