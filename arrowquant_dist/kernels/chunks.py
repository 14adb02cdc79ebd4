"""Reads chunks of a file, verifies them and copies them, bypassing the CPU's cache, in one call without the GIL.

A read directly into memory that is not in the cache first fetches each cache line, only to overwrite it. Here a chunk
is read into memory that stays in the cache, hashed there, and copied by non-temporal stores: on a Zen 1 two threads
deliver 7.4 GB/s from the page cache this way, and 6.0 GB/s by reading directly. Only verified chunks are delivered.

pread and memcpy are the system's; XXH3_128bits is from the library `xxhash`.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
from llvmlite import ir

from arrowquant_dist.kernels.native import Cpu, engine_for, load, loop_over, makes_no_code
from arrowquant_dist.kernels.xxhash_private import xxh3_128bits

_Call = Callable[..., int]
_DIGEST_NBYTES = 16
_LINE_NBYTES, _PAGE_NBYTES = 64, 4096
# Platforms on which 16 bytes are returned in two registers, and a file offset takes one.
_KNOWN = [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "x86_64"), ("darwin", "arm64")]

_I32, _WORD = ir.IntType(32), ir.IntType(64)
_PIECE, _PIECE_NBYTES = ir.VectorType(_WORD, 4), 32
_PREAD = ir.FunctionType(_WORD, [_I32, _WORD, _WORD, _WORD])
_DIGEST = ir.FunctionType(ir.LiteralStructType([_WORD, _WORD]), [_WORD, _WORD])
_COPY = ir.FunctionType(_WORD, [_WORD, _WORD, _WORD])


class ChunkMemory:
    """A thread's memory for the current chunk."""

    def __init__(self, chunk_nbytes: int) -> None:
        self.chunk_nbytes = chunk_nbytes
        self._memory = np.empty(chunk_nbytes + _PAGE_NBYTES, np.uint8)

    def beside(self, out: np.ndarray) -> int:
        """The address at which a chunk for `out` is read. A load waits for an earlier store whose address has the same
        low twelve bits: with these 64 bytes before those of `out`, delivery took a fifth longer."""
        address = self._memory.ctypes.data
        return int(address + (out.ctypes.data + _PAGE_NBYTES // 4 - address) % _PAGE_NBYTES)


def read_chunks(descriptor: int, offset: int, digests: bytes, out: np.ndarray, memory: ChunkMemory) -> int:
    """Fills `out` with the bytes of a file from `offset` on, as long as chunks have their digests. Returns how many.

    The caller finds out what stopped it (a digest, an error, the end of the file, a signal) by reading on from there.
    Returns 0 if this machine cannot run it, or if a digest is missing.

    digests: xxh3_128 of each chunk, 16 bytes, big-endian. out: uint8, in C order; its last chunk may be shorter.
    """
    call, nbytes = _compiled(), memory.chunk_nbytes
    if call is None or len(digests) * nbytes < _DIGEST_NBYTES * out.size:
        return 0
    words = np.frombuffer(digests, ">u8").astype(np.uint64)
    return call(descriptor, offset, words.ctypes.data, out.ctypes.data, out.size, memory.beside(out), nbytes)


@cache
def _compiled() -> _Call | None:
    """The compiled loop; None if the functions that it calls are not available, or not known to work."""
    if makes_no_code() or (sys.platform, platform.machine()) not in _KNOWN:
        return None
    digest, system = xxh3_128bits(), ctypes.CDLL(None)
    if digest is None:
        return None
    functions = (system.pread, digest, system.memcpy)
    module = ir.Module()
    _Reader(module, *(ctypes.cast(each, ctypes.c_void_p).value or 0 for each in functions)).build()
    engine = engine_for(module, Cpu.here())
    kinds = [ctypes.c_int32, *[ctypes.c_int64] * 6]
    call = ctypes.CFUNCTYPE(ctypes.c_int64, *kinds)(engine.get_function_address(_Reader.NAME))
    return partial(_call, engine, call)


def _call(_engine: Any, call: _Call, *arguments: int) -> int:
    """_engine: owner of the code, kept alive as long as this can be called."""
    return call(*arguments)


class _Reader:
    """Builds the code: a loop over chunks, and in it one over the reads of a chunk and one over its cache lines."""

    NAME = "read_chunks"

    def __init__(self, module: ir.Module, pread: int, digest: int, copy: int) -> None:
        kind = ir.FunctionType(_WORD, [_I32, *[_WORD] * 6])
        function = ir.Function(module, kind, self.NAME)
        self.descriptor, self.offset, self.digests, self.out, self.size, self.chunk, self.most = function.args
        self.past_cache = module.add_metadata([_I32(1)])
        self.builder = ir.IRBuilder(function.append_basic_block())
        self.pread, self.digest, self.copy = (
            self.builder.inttoptr(_WORD(address), each.as_pointer())
            for address, each in ((pread, _PREAD), (digest, _DIGEST), (copy, _COPY))
        )
        self.ended, self.results = function.append_basic_block("ended"), list[tuple[Any, Any]]()

    def build(self) -> None:
        builder, begin = self.builder, self.builder.append_basic_block("chunk")
        before, in_chunk = builder.block, builder.append_basic_block()
        builder.branch(begin)
        builder.position_at_end(begin)
        done = builder.phi(_WORD)
        done.add_incoming(_WORD(0), before)
        self._end_if(builder.icmp_unsigned(">=", done, self.size), done, in_chunk)
        left = builder.sub(self.size, done)
        nbytes = builder.select(builder.icmp_unsigned("<", left, self.most), left, self.most)
        self._read(done, nbytes)
        self._verify(done, nbytes)
        self._put(builder.add(self.out, done), nbytes)
        done.add_incoming(builder.add(done, nbytes), builder.block)
        builder.branch(begin)
        self._build_end()

    def _read(self, done: Any, nbytes: Any) -> None:
        """Reads a whole chunk, in as many reads as it takes."""
        builder, before = self.builder, self.builder.block
        again, some, behind = (builder.append_basic_block() for _ in range(3))
        builder.branch(again)
        builder.position_at_end(again)
        there = builder.phi(_WORD)
        there.add_incoming(_WORD(0), before)
        place = builder.add(self.chunk, there)
        offset = builder.add(self.offset, builder.add(done, there))
        count = builder.call(self.pread, [self.descriptor, place, builder.sub(nbytes, there), offset])
        self._end_if(builder.icmp_signed("<=", count, _WORD(0)), done, some)
        following = builder.add(there, count)
        there.add_incoming(following, some)
        builder.cbranch(builder.icmp_unsigned("<", following, nbytes), again, behind)
        builder.position_at_end(behind)

    def _verify(self, done: Any, nbytes: Any) -> None:
        builder = self.builder
        found = builder.call(self.digest, [self.chunk, nbytes])
        low, high = (builder.extract_value(found, i) for i in range(2))
        place = builder.add(self.digests, builder.mul(builder.udiv(done, self.most), _WORD(_DIGEST_NBYTES)))
        differs = builder.or_(
            builder.icmp_unsigned("!=", high, load(builder, place, _WORD)),
            builder.icmp_unsigned("!=", low, load(builder, place, _WORD, 8)),
        )
        self._end_if(differs, done, builder.append_basic_block())

    def _put(self, out: Any, nbytes: Any) -> None:
        """Copies the chunk to `out`: whole cache lines bypass the cache, what precedes and follows them does not."""
        builder = self.builder
        head = builder.and_(builder.neg(out), _WORD(_LINE_NBYTES - 1))
        head = builder.select(builder.icmp_unsigned("<", head, nbytes), head, nbytes)
        lines = builder.udiv(builder.sub(nbytes, head), _WORD(_LINE_NBYTES))
        builder.call(self.copy, [out, self.chunk, head])
        with builder.if_then(builder.icmp_unsigned(">", lines, _WORD(0))), loop_over(builder, lines) as line:
            at = builder.add(head, builder.mul(line, _WORD(_LINE_NBYTES)))
            self._put_line(builder.add(self.chunk, at), builder.add(out, at))
        at = builder.add(head, builder.mul(lines, _WORD(_LINE_NBYTES)))
        builder.call(self.copy, [builder.add(out, at), builder.add(self.chunk, at), builder.sub(nbytes, at)])

    def _put_line(self, source: Any, out: Any) -> None:
        builder = self.builder
        for at in range(0, _LINE_NBYTES, _PIECE_NBYTES):
            place = builder.inttoptr(builder.add(out, _WORD(at)), _PIECE.as_pointer())
            put = builder.store(load(builder, source, _PIECE, at), place, align=_PIECE_NBYTES)
            put.set_metadata("nontemporal", self.past_cache)

    def _end_if(self, condition: Any, done: Any, otherwise: Any) -> None:
        self.results.append((done, self.builder.block))
        self.builder.cbranch(condition, self.ended, otherwise)
        self.builder.position_at_end(otherwise)

    def _build_end(self) -> None:
        """Ends with a fence, after which other threads see what bypassed the cache."""
        builder = self.builder
        builder.position_at_end(self.ended)
        result = builder.phi(_WORD)
        for done, block in self.results:
            result.add_incoming(done, block)
        builder.fence("seq_cst")
        builder.ret(result)
