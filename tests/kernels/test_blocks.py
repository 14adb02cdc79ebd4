"""Blocks have each code where GGML expects it, with and without compiled code."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arrowquant_dist.kernels import blocks, native
from arrowquant_dist.kernels.blocks import BlockBytes
from arrowquant_dist.kernels.native import Cpu
from tests.kernels.weights import numerics

BLOCKS = {
    8: BlockBytes(8, codes=2, nbytes=32, numbers=(0,)),
    4: BlockBytes(4, codes=4, nbytes=16, numbers=(0, 2)),
    2: BlockBytes(2, codes=0, nbytes=64, numbers=(64,)),
}
_OTHER = 0xA5  # what memory held before


def expected_codes(codes: list[int], bits: int) -> list[int]:
    """The bytes of a block, written out. codes: unsigned."""
    if bits == 8:
        return codes
    if bits == 4:
        return [codes[j] | codes[j + 16] << 4 for j in range(16)]
    return [
        sum((3 - codes[half + m + 32 * place]) << (2 * place) for place in range(4))
        for half in (0, 128)
        for m in range(32)
    ]


def packed(codes: list[int], bits: int) -> list[int]:
    """V2's bytes: low bits first."""
    whole = sum(code << (bits * i) for i, code in enumerate(codes))
    return list(whole.to_bytes(len(codes) * bits // 8, "little"))


@numerics
@given(st.sampled_from([8, 4, 2]), st.integers(0, 2**32 - 1))
def test_codes_are_where_ggml_looks_for_them(bits: int, seed: int) -> None:
    block, rng = BLOCKS[bits], np.random.default_rng(seed)
    codes = rng.integers(0, 1 << bits, 256 if bits == 2 else 32).tolist()
    numbers = [rng.normal(size=(1,) * 5).astype(np.float16) for _ in block.numbers]
    source = np.array(packed(codes, bits), np.uint8).reshape(1, 1, 1, 1, 1, -1)
    size = block.nbytes + 2 * len(numbers)
    out = np.full((*source.shape[:-1], size), _OTHER, np.uint8)
    block.fill(source, numbers, out)
    found = out.reshape(-1)
    assert found[block.codes : block.codes + block.nbytes].tolist() == expected_codes(codes, bits)
    for number, place in zip(numbers, block.numbers, strict=True):
        assert found[place : place + 2].tobytes() == number.tobytes()


def filled(bits: int) -> np.ndarray:
    """Blocks that lie apart, in places of another order, with numbers that several of them share."""
    block, rng = BLOCKS[bits], np.random.default_rng(bits)
    shape = (2, 3, 2, 2, 3)
    codes = rng.integers(0, 256, (*shape, block.nbytes), np.uint8)
    numbers = [
        np.broadcast_to(rng.normal(size=(*shape[:-1], 1)).astype(np.float16), shape) for _ in block.numbers
    ]
    size = block.nbytes + 2 * len(numbers)
    out = np.full((2, 2, 3, 2, 3, size + 5), _OTHER, np.uint8)
    block.fill(codes, numbers, out.swapaxes(1, 2)[..., :size])
    assert (out[..., size:] == _OTHER).all()
    return out


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_blocks_are_the_same_without_machine_code_and_on_the_plainest_cpu(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = filled(bits)
    blocks._filler.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(Cpu, "here", classmethod(lambda _cls: Cpu("", "")))
        assert np.array_equal(filled(bits), expected)
    blocks._filler.cache_clear()
    monkeypatch.setattr(blocks, "makes_no_code", lambda: True)
    monkeypatch.setattr(native, "engine_for", None)
    assert np.array_equal(filled(bits), expected)
