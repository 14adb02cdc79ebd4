"""Loops over pieces do their work on each piece, wherever it lies, and touch no byte next to it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llvmlite import ir

from arrowquant_dist.kernels.native import Cpu, EachPiece, load, makes_no_code, store
from tests.kernels.weights import numerics


def _add(builder: ir.IRBuilder, addresses: Sequence[Any]) -> None:
    """out[1] = left[0] + right[0], bytes."""
    left, right, out = addresses
    byte = ir.IntType(8)
    store(builder, builder.add(load(builder, left, byte), load(builder, right, byte)), out, 1)


ADDED = EachPiece(_add, arrays=3, dimensions=3)


@st.composite
def _views(draw: st.DrawFn) -> list[np.ndarray]:
    """Of one shape with three dimensions, each of other strides, some of them 0."""
    shape = draw(st.tuples(*[st.integers(0, 4)] * 3))
    seed = draw(st.integers(0, 99))
    views = []
    for number in range(2):
        steps = [draw(st.integers(1, 3)) for _ in shape]
        repeated = [draw(st.booleans()) for _ in shape]
        sizes = [
            1 if again else size * step for size, step, again in zip(shape, steps, repeated, strict=True)
        ]
        order = draw(st.permutations(range(3)))
        whole = np.random.default_rng(seed + number).integers(0, 256, [sizes[i] for i in order], np.uint8)
        turned = whole.transpose(np.argsort(order))
        picked = turned[
            tuple(
                slice(None) if again else slice(None, None, s)
                for s, again in zip(steps, repeated, strict=True)
            )
        ]
        views.append(np.broadcast_to(picked, shape))
    return views


@numerics
@given(_views())
def test_each_piece_is_made_of_those_at_its_place(views: list[np.ndarray]) -> None:
    left, right = views
    out = np.full((*left.shape, 3), 7, np.uint8)
    ADDED(left, right, out)
    assert np.array_equal(out[..., 1], left + right)
    assert (out[..., ::2] == 7).all()


def test_code_for_the_plainest_cpu_does_the_same() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.integers(0, 256, (2, 3, 4, 5), np.uint8)
    out = np.zeros((2, 3, 4, 5, 2), np.uint8)
    plain = EachPiece(_add, arrays=3, dimensions=3, cpu=Cpu("", ""))
    ADDED(left, right, out[0])
    plain(left, right, out[1])
    assert np.array_equal(*out)


def test_threads_that_call_first_at_the_same_time_compile_once() -> None:
    built: list[int] = []

    def body(builder: ir.IRBuilder, addresses: Sequence[Any]) -> None:
        built.append(1)
        _add(builder, addresses)

    added, together = EachPiece(body, arrays=3, dimensions=3), Barrier(4)
    ones = np.ones((2, 2, 2), np.uint8)

    def call(_: int) -> np.ndarray:
        out = np.zeros((2, 2, 2, 2), np.uint8)
        together.wait()
        added(ones, ones, out)
        return out[..., 1]

    with ThreadPoolExecutor(4) as threads:
        assert all((found == 2).all() for found in threads.map(call, range(4)))
    assert built == [1]


@pytest.mark.parametrize(("said", "expected"), [("1", True), ("0", False), ("", False), (None, False)])
def test_numba_s_variable_says_whether_code_may_be_made(
    monkeypatch: pytest.MonkeyPatch, said: str | None, *, expected: bool
) -> None:
    monkeypatch.delenv("NUMBA_DISABLE_JIT", raising=False)
    if said is not None:
        monkeypatch.setenv("NUMBA_DISABLE_JIT", said)
    assert makes_no_code() is expected
