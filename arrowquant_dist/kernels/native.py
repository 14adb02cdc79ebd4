"""Loops over pieces of bytes as machine code, made by LLVM without Numba.

Importing Numba and loading a first kernel takes half a second and 150 MB in a process, more than everything else that
an export does before it reads; a loop made here takes 40 ms and 65 MB, most of it pages of LLVM's library. So these
loops are for processes that use no other kernels. They are compiled in each process, run without the GIL, and allocate
nothing.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

# Builds what is done to a piece: (builder, the piece's address in each of the arrays).
Body = Callable[[ir.IRBuilder, Sequence[Any]], None]

_WORD = ir.IntType(64)


def makes_no_code() -> bool:
    """Whether no machine code is to be made, by the variable that tells Numba so (NUMBA_DISABLE_JIT=1)."""
    return os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")


@dataclass(frozen=True, slots=True)
class Cpu:
    """The CPU that code is made for, in LLVM's terms. features: such as `+avx2,-fma`."""

    name: str
    features: str

    @classmethod
    def here(cls) -> Cpu:
        return cls(llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())


class EachPiece:
    """Runs the same code on the pieces at the same place of several arrays, in one call for all places.

    body: builds the code for a piece. arrays: number of arrays. dimensions: number of leading dimensions of each array
    that make up the places. cpu: the CPU to compile for; None for this one. Compiled by the first call.
    """

    def __init__(self, body: Body, *, arrays: int, dimensions: int, cpu: Cpu | None = None) -> None:
        self._body, self._arrays, self._dimensions, self._cpu = body, arrays, dimensions, cpu
        self._lock = threading.Lock()
        self._engine: Any = None  # owner of the code
        self._call: Callable[..., None] | None = None

    def __call__(self, *arrays: np.ndarray) -> None:
        """arrays: their leading dimensions are equal; strides may be any."""
        places = arrays[0].shape[: self._dimensions]
        if 0 in places:
            return
        strides = [array.strides[dimension] for dimension in range(len(places)) for array in arrays]
        self._compiled()(*(array.ctypes.data for array in arrays), *places, *strides)

    def _compiled(self) -> Callable[..., None]:
        with self._lock:
            if self._call is None:
                count = self._arrays + self._dimensions * (1 + self._arrays)
                module = ir.Module()
                kind = ir.FunctionType(ir.VoidType(), [_WORD] * count)
                function = ir.Function(module, kind, "each_piece")
                self._build(ir.IRBuilder(function.append_basic_block()), function.args)
                self._engine = engine_for(module, self._cpu or Cpu.here())
                address = self._engine.get_function_address(function.name)
                self._call = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * count)(address)
            return self._call

    def _build(self, builder: ir.IRBuilder, arguments: Sequence[Any]) -> None:
        addresses, rest = arguments[: self._arrays], arguments[self._arrays :]
        places, strides = rest[: self._dimensions], rest[self._dimensions :]
        by_dimension = [strides[i * self._arrays : (i + 1) * self._arrays] for i in range(self._dimensions)]
        self._loop(builder, addresses, list(zip(places, by_dimension, strict=True)))
        builder.ret_void()

    def _loop(
        self,
        builder: ir.IRBuilder,
        addresses: Sequence[Any],
        dimensions: Sequence[tuple[Any, Sequence[Any]]],
    ) -> None:
        """dimensions: for each dimension, the number of places and the stride in each array."""
        if not dimensions:
            self._body(builder, addresses)
            return
        (count, strides), *inner = dimensions
        with loop_over(builder, count) as i:
            moved = [
                builder.add(address, builder.mul(i, stride))
                for address, stride in zip(addresses, strides, strict=True)
            ]
            self._loop(builder, moved, inner)


def load(builder: ir.IRBuilder, address: Any, kind: ir.Type, offset: int = 0) -> Any:
    """Loads a value, or a vector of values, which need not be aligned. offset: bytes after the address."""
    place = builder.inttoptr(builder.add(address, _WORD(offset)), kind.as_pointer())
    return builder.load(place, align=1)


def store(builder: ir.IRBuilder, value: Any, address: Any, offset: int = 0) -> None:
    place = builder.inttoptr(builder.add(address, _WORD(offset)), value.type.as_pointer())
    builder.store(value, place, align=1)


def everywhere(vector: ir.VectorType, number: float) -> Any:
    """A vector with the same number in all lanes."""
    return ir.Constant(vector, [number] * vector.count)


@contextmanager
def loop_over(builder: ir.IRBuilder, count: Any) -> Iterator[Any]:
    """Code built within this context runs for 0 … count - 1. count: at least 1."""
    before, loop = builder.block, builder.append_basic_block()
    builder.branch(loop)
    builder.position_at_end(loop)
    i = builder.phi(_WORD)
    i.add_incoming(_WORD(0), before)
    yield i
    following = builder.add(i, _WORD(1))
    i.add_incoming(following, builder.block)
    behind = builder.append_basic_block()
    builder.cbranch(builder.icmp_unsigned("<", following, count), loop, behind)
    builder.position_at_end(behind)


def engine_for(module: ir.Module, cpu: Cpu) -> Any:
    """An engine that compiles the module's functions to machine code, and owns it."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    machine = target.create_target_machine(cpu=cpu.name, features=cpu.features, opt=3)
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    engine = llvm.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    return engine
