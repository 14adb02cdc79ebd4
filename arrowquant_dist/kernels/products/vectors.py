"""Four packed rows times one input, in vectors of eight 32-bit words, with codes that stay in registers.

A word holds 32 / bits codes. Code k needs no shift and no conversion between its mask and the product: below the
exponent of 2^23 the word's other codes are masked out, so that the bits are the number 2^23 + u · 2^shift, from which
the first term is subtracted exactly; the inputs are divided by 2^shift instead. This works for 23 / bits codes of a
word before it is shifted once. Four rows share the inputs and constants that are read. On a Zen 1, which has no
AVX-512, one input times a 4096² matrix takes 0.4 to 0.5 of float32's time this way, and took 0.5 to 1.0 when rows were
unpacked into the cache first. Tried there: a shift and a conversion for each code took half as long again, as did
vpermilps for a table of the four codes of 2 bits; two rows at a time took a tenth longer.

Zero points are subtracted from a group's sum, not from each code: sum(code · input) - zero point · sum(inputs).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from arrowquant_dist.kernels.compile import kernel
from arrowquant_dist.kernels.numba_private import data_pointer, nothing
from arrowquant_dist.kernels.products import BLOCK
from arrowquant_dist.kernels.products.arranged import AT_ONCE, LANES, NBYTES, PLACES, codes_a_vector

_F32, _I8, _I32, _I64 = ir.FloatType(), ir.IntType(8), ir.IntType(32), ir.IntType(64)
_NUMBERS, _WORDS = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)
_EXPONENT = (127 + PLACES) << PLACES  # the bits of 2^23
_EXPONENT_MASK = 0xFF800000

# The arguments of `_multiply_at_once`, in this order. Matrices are in C order.
_ARGUMENTS = (
    "codes",  # uint8 [rows, row bytes], flat
    "row_bytes",
    "scales",  # float32 [rows, row groups], flat
    "zero_points",  # like scales
    "row_groups",
    "row",  # the first of four
    "width",
    "groups",  # in a vector; 1 if a group is a vector or more
    "steps",  # groups, or vectors if a vector contains several groups
    "vectors",  # in a step
    "values",  # float32, as arranged by `arrange`
    "sums",  # float32 [steps, LANES], flat; 0 if there are no zero points
    "out",  # float32 [rows]
)
_FORMS = ((8, 1), (4, 1), (4, 2), (4, 4), (2, 1), (2, 2), (2, 4))  # width and groups


@intrinsic
def _multiply_at_once(
    _typing: Any,
    codes: Any,
    row_bytes: Any,
    scales: Any,
    zero_points: Any,
    row_groups: Any,
    row: Any,
    width: Any,
    groups: Any,
    steps: Any,
    vectors: Any,
    values: Any,
    sums: Any,
    out: Any,
) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        given = {
            name: data_pointer(context, builder, kind, value) if isinstance(kind, types.Array) else value
            for name, kind, value in zip(_ARGUMENTS, signature.args, args, strict=True)
        }
        for form in _FORMS:
            parts = [
                builder.icmp_signed("==", given[name], _I64(number))
                for name, number in zip(("width", "groups"), form, strict=True)
            ]
            with builder.if_then(builder.and_(*parts)):
                _Rows(builder, given, *form).build()
        return nothing(context)

    kinds = (codes, row_bytes, scales, zero_points, row_groups, row, width, groups, steps, vectors)
    return types.void(*kinds, values, sums, out), codegen


class _Rows:
    """Builds the code for four rows and one form."""

    def __init__(self, builder: ir.IRBuilder, given: Mapping[str, Any], width: int, groups: int) -> None:
        self.builder, self.given, self.width, self.groups = builder, given, width, groups

    def build(self) -> None:
        """Adds to the totals, for each step, the sums of the products with its codes, times its scales."""
        builder, given = self.builder, self.given
        codes = self._rows_of("codes", "row_bytes")
        scales, points = (self._rows_of(name, "row_groups") for name in ("scales", "zero_points"))
        nothing_yet = [_numbers(0.0)] * BLOCK
        with _counted(builder, given["steps"], nothing_yet) as (step, totals):
            first = builder.mul(step, given["vectors"])
            with _counted(builder, given["vectors"], nothing_yet) as (i, sums):
                sums[:] = self._add_vector(codes, builder.add(first, i), sums)
            lanes = self._load(given["sums"], _NUMBERS, builder.mul(step, _I64(LANES)))
            for n in range(BLOCK):
                point = builder.fneg(self._spread(points[n], step))
                found = self._fused(point, lanes, sums[n])
                totals[n] = self._fused(self._spread(scales[n], step), found, totals[n])
        for n, total in enumerate(totals):
            place = builder.gep(given["out"], [builder.add(given["row"], _I64(n))])
            builder.store(self._sum(total), place)

    def _rows_of(self, name: str, stride: str) -> list[Any]:
        """Where each row of an array begins."""
        builder, given = self.builder, self.given
        rows = [builder.add(given["row"], _I64(n)) for n in range(BLOCK)]
        return [builder.gep(given[name], [builder.mul(row, given[stride])]) for row in rows]

    def _add_vector(self, codes: list[Any], vector: Any, sums: list[Any]) -> list[Any]:
        """The rows' sums after adding the products with one vector of codes of each row."""
        builder = self.builder
        from_code = builder.mul(vector, _I64(NBYTES))
        from_value = builder.mul(vector, _I64(NBYTES * 8 // self.width))
        own = [builder.gep(row, [from_code]) for row in codes]
        self._fetch([builder.gep(row, [builder.mul(self.given["row_bytes"], _I64(BLOCK))]) for row in own])
        inputs = builder.gep(self.given["values"], [from_value])
        return (self._add_bytes if self.width == 8 else self._add_words)(own, inputs, sums)

    def _add_bytes(self, codes: list[Any], inputs: Any, sums: list[Any]) -> list[Any]:
        builder, kind = self.builder, ir.VectorType(_I8, LANES)
        for start in range(0, NBYTES, LANES):
            met = self._load(inputs, _NUMBERS, _I64(start))
            found = [self._load(row, kind, _I64(start)) for row in codes]
            numbers = [builder.sitofp(builder.sext(each, _WORDS), _NUMBERS) for each in found]
            sums = [self._fused(number, met, total) for number, total in zip(numbers, sums, strict=True)]
        return sums

    def _add_words(self, codes: list[Any], inputs: Any, sums: list[Any]) -> list[Any]:
        builder, width = self.builder, self.width
        words = [self._load(row, _WORDS, _I64(0)) for row in codes]
        each, placed, bias = 32 // width, PLACES // width, 1 << (width - 1)
        begun: list[Any] = []
        for k in range(each):
            shift = k % placed * width
            if shift == 0:
                begun = [self._begin(word, k, min(placed, each - k)) for word in words]
            met = self._load(inputs, _NUMBERS, _I64(LANES * k))
            mask = _words(_EXPONENT_MASK | ((1 << width) - 1) << shift)
            offset = _numbers(2.0**PLACES + bias * 2.0**shift)
            masked = [builder.bitcast(builder.and_(word, mask), _NUMBERS) for word in begun]
            numbers = [builder.fsub(number, offset) for number in masked]
            sums = [self._fused(number, met, total) for number, total in zip(numbers, sums, strict=True)]
        return sums

    def _begin(self, word: Any, first: int, count: int) -> Any:
        """Codes [first, first + count) of each word as the lowest bits of a float32, 2^23 above them."""
        moved = self.builder.lshr(word, _words(first * self.width))
        kept = self.builder.and_(moved, _words((1 << (count * self.width)) - 1))
        return self.builder.or_(kept, _words(_EXPONENT))

    def _fetch(self, pointers: list[Any]) -> None:
        """Prefetches what the next four rows have at the same place, because CPUs' own prefetching starts over with
        each row."""
        kind = ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32])
        fetch = self.builder.module.declare_intrinsic("llvm.prefetch", [_I8.as_pointer()], kind)
        for pointer in pointers:
            self.builder.call(
                fetch, [pointer, _I32(0), _I32(3), _I32(1)]
            )  # for reading, into the first-level cache, data

    def _load(self, pointer: Any, kind: ir.Type, offset: Any) -> Any:
        place = self.builder.gep(pointer, [offset])
        return self.builder.load(self.builder.bitcast(place, kind.as_pointer()), align=1)

    def _spread(self, pointer: Any, step: Any) -> Any:
        """The numbers of a step's groups, each in the lanes of its codes."""
        kind = ir.VectorType(_F32, self.groups)
        found = self._load(pointer, kind, self.builder.mul(step, _I64(self.groups)))
        lanes = [lane * self.groups // LANES for lane in range(LANES)]
        place = ir.Constant(ir.VectorType(_I32, LANES), lanes)
        return self.builder.shuffle_vector(found, ir.Constant(kind, ir.Undefined), place)

    def _fused(self, left: Any, right: Any, added: Any) -> Any:
        """left · right + added."""
        module, name = self.builder.module, f"llvm.fma.v{LANES}f32"
        kind = ir.FunctionType(_NUMBERS, [_NUMBERS] * 3)
        function = module.globals.get(name) or ir.Function(module, kind, name)
        return self.builder.call(function, [left, right, added])

    def _sum(self, vector: Any) -> Any:
        parts = [self.builder.extract_element(vector, _I32(lane)) for lane in range(LANES)]
        while len(parts) > 1:
            parts = [self.builder.fadd(a, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
        return parts[0]


@contextmanager
def _counted(builder: ir.IRBuilder, count: Any, begin: list[Any]) -> Iterator[tuple[Any, list[Any]]]:
    """Code built within this context runs for i in 0 … count - 1, and carries a list of values from one i to the next.

    Yields (i, values): a list of the values before an iteration, in which the code built puts those after it. begin:
    the values before the first iteration. After the context, the list holds the last values. count ≥ 1.
    """
    before, loop = builder.block, builder.append_basic_block()
    builder.branch(loop)
    builder.position_at_end(loop)
    i, carried = builder.phi(_I64), [builder.phi(value.type) for value in begin]
    values = list(carried)
    yield i, values
    following = builder.add(i, _I64(1))
    for phi, first, last in zip([i, *carried], [_I64(0), *begin], [following, *values], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(last, builder.block)
    behind = builder.append_basic_block()
    builder.cbranch(builder.icmp_signed("<", following, count), loop, behind)
    builder.position_at_end(behind)


def _words(number: int) -> ir.Constant:
    return ir.Constant(_WORDS, [number] * LANES)


def _numbers(number: float) -> ir.Constant:
    return ir.Constant(_NUMBERS, [number] * LANES)


@kernel
def _multiply_by_vectors(
    codes: np.ndarray,
    width: int,
    group: int,
    scales: np.ndarray,
    zero_points: np.ndarray,
    values: np.ndarray,
    sums: np.ndarray,
    row: int,
    out: np.ndarray,
) -> None:
    vector = codes_a_vector(width)
    steps = sums.shape[0]
    # If there are no zero points, any numbers will do: the sums that they are multiplied by are 0.
    points = zero_points if zero_points.shape[1] else scales
    _multiply_at_once(
        codes.reshape(-1),
        codes.shape[1],
        scales.reshape(-1),
        points.reshape(-1),
        scales.shape[1],
        row,
        width,
        max(1, vector // group),
        steps,
        values.size // vector // steps,
        values,
        sums.reshape(-1),
        out,
    )


@kernel
def _multiply_never(
    codes: np.ndarray,
    width: int,
    group: int,
    scales: np.ndarray,
    zero_points: np.ndarray,
    values: np.ndarray,
    sums: np.ndarray,
    row: int,
    out: np.ndarray,
) -> None:
    """Never called, because `taken` gives vectors nothing to process."""


# (codes, width, group, scales, zero_points, values, sums, row, out): out[row : row + BLOCK] = the rows' first
# values.size codes times the inputs. codes, width, group, scales, zero_points, out: as in multiply_one. values, sums:
# as made by `arrange`.
multiply_four = _multiply_by_vectors if AT_ONCE else _multiply_never
