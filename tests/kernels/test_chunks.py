"""Chunks of a file are delivered verified, exactly into their places, up to the first wrong one."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from arrowquant_dist.format.digests import chunk_digest
from arrowquant_dist.kernels import chunks, xxhash_private
from arrowquant_dist.kernels.chunks import ChunkMemory
from tests.kernels.weights import numerics

VALUES = np.random.default_rng(3).integers(0, 256, 20_000, np.uint8)


@pytest.fixture(scope="module")
def descriptor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    path: Path = tmp_path_factory.mktemp("chunks") / "values"
    path.write_bytes(VALUES.tobytes())
    descriptor = os.open(path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def digests_of(values: np.ndarray, nbytes: int) -> bytes:
    return b"".join(chunk_digest(values[at : at + nbytes].data) for at in range(0, values.size, nbytes))


@numerics
@given(
    st.integers(0, 300),
    st.integers(0, 3000),
    st.integers(1, 700),
    st.integers(0, 70),
)
def test_every_byte_comes_and_none_beside_it(
    descriptor: int, offset: int, nbytes: int, chunk_nbytes: int, before: int
) -> None:
    memory = np.full(before + nbytes + 70, 170, np.uint8)
    out, wanted = memory[before : before + nbytes], VALUES[offset : offset + nbytes]
    digests = digests_of(wanted, chunk_nbytes)
    assert chunks.read_chunks(descriptor, offset, digests, out, ChunkMemory(chunk_nbytes)) == nbytes
    assert out.tobytes() == wanted.tobytes()
    assert set(memory[:before]) | set(memory[before + nbytes :]) == {170}


@numerics
@given(st.integers(0, 9), st.integers(0, 127))
def test_it_ends_before_a_chunk_that_differs_in_a_bit(descriptor: int, number: int, bit: int) -> None:
    digests = bytearray(digests_of(VALUES[:10_000], 1000))
    digests[16 * number + bit // 8] ^= 1 << bit % 8
    out = np.zeros(10_000, np.uint8)
    done = chunks.read_chunks(descriptor, 0, bytes(digests), out, ChunkMemory(1000))
    assert done == number * 1000
    assert np.array_equal(out[:done], VALUES[:done])
    assert not out[done:].any()  # nothing is delivered unverified


def test_it_ends_where_the_file_does(descriptor: int) -> None:
    wanted = np.append(VALUES[-2500:], np.zeros(1000, np.uint8))
    out = np.zeros(wanted.size, np.uint8)
    done = chunks.read_chunks(
        descriptor, VALUES.size - 2500, digests_of(wanted, 1000), out, ChunkMemory(1000)
    )
    assert done == 2000


def test_what_cannot_be_read_is_nothing(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)  # a folder
    out, digests = np.zeros(100, np.uint8), digests_of(VALUES[:100], 100)
    try:
        assert chunks.read_chunks(descriptor, 0, digests, out, ChunkMemory(100)) == 0
    finally:
        os.close(descriptor)
    assert chunks.read_chunks(descriptor, 0, digests, out, ChunkMemory(100)) == 0


def test_a_digest_too_few_is_none_at_all(descriptor: int) -> None:
    out, digests = np.zeros(2001, np.uint8), digests_of(VALUES[:2000], 1000)
    assert chunks.read_chunks(descriptor, 0, digests, out, ChunkMemory(1000)) == 0


def test_threads_read_side_by_side(descriptor: int) -> None:
    digests = digests_of(VALUES, 512)

    def read(_: int) -> bytes:
        out = np.empty(VALUES.size, np.uint8)
        assert chunks.read_chunks(descriptor, 0, digests, out, ChunkMemory(512)) == out.size
        return out.tobytes()

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(read, range(64))) == {VALUES.tobytes()}


@pytest.mark.parametrize("missing", ["the file", "the symbol", "the platform", "machine code", "the digest"])
def test_where_there_is_no_such_way_nothing_is_read(
    monkeypatch: pytest.MonkeyPatch, descriptor: int, missing: str
) -> None:
    chunks._compiled.cache_clear()
    if missing == "the file":
        monkeypatch.setattr(xxhash_private, "_FILE", "xxhash.elsewhere")
    elif missing == "the symbol":
        monkeypatch.setattr(xxhash_private, "_SYMBOL", "XXH3_256bits")
    elif missing == "the platform":
        monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    elif missing == "machine code":
        monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    else:
        monkeypatch.setattr(xxhash, "xxh3_128_digest", lambda _: bytes(16))
    try:
        out = np.zeros(100, np.uint8)
        digests = digests_of(VALUES[:100], 100)
        assert chunks.read_chunks(descriptor, 0, digests, out, ChunkMemory(100)) == 0
        assert not out.any()
    finally:
        chunks._compiled.cache_clear()
