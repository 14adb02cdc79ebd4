from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arrowquant_dist.arena import Arena, Recycled, Slabs


@given(st.lists(st.lists(st.integers(0, 5000), max_size=6), max_size=6))
def test_pieces_taken_between_two_resets_never_overlap(rounds: list[list[int]]) -> None:
    arena = Arena()
    for sizes in rounds:
        arena.reset()
        pieces = [arena.take(size) for size in sizes]
        for number, piece in enumerate(pieces):
            piece[:] = number
        for number, (piece, size) in enumerate(zip(pieces, sizes, strict=True)):
            assert piece.size == size
            assert (piece == number).all()


def test_memory_is_handed_out_again_after_a_reset() -> None:
    arena = Arena()
    first = arena.take(1000)
    arena.reset()
    assert np.shares_memory(first, arena.take(900))


def test_an_arena_that_is_reserved_does_not_grow_between_pieces() -> None:
    arena = Arena()
    arena.reserve(1000)
    small = arena.take(10)
    arena.reset()
    large = arena.take(1000)
    assert np.shares_memory(small, large)


def test_memory_that_there_is_not_is_a_memory_error() -> None:
    with pytest.raises(MemoryError):
        Arena().reserve(1 << 60)


def test_pieces_of_slabs_are_their_owners_own() -> None:
    slabs = Slabs()
    sizes = [300_000, 1 << 20, 3 << 20, 4 << 20, 1000, 300_001, 2 << 20, 3 << 20]
    pieces = [slabs.take(nbytes) for nbytes in sizes]
    for number, piece in enumerate(pieces):
        piece.fill(number)
    for number, (piece, nbytes) in enumerate(zip(pieces, sizes, strict=True)):
        assert (piece.size, piece.flags.writeable, piece.ctypes.data % 8) == (nbytes, True, 0)
        assert np.all(piece == number)


def test_threads_that_take_from_one_slab_never_share_memory() -> None:
    slabs = Slabs()
    with ThreadPoolExecutor(8) as pool:
        pieces = [*pool.map(lambda _: slabs.take(260_000), range(200))]
    starts = sorted(piece.ctypes.data for piece in pieces)
    assert all(after - before >= 260_000 for before, after in pairwise(starts))


@pytest.mark.parametrize(
    "view_of",
    [
        lambda piece: piece[10:20],
        lambda piece: piece.view(np.uint16)[5:].reshape(1, -1),
        lambda piece: piece.reshape(2, -1)[1:],
        lambda piece: np.frombuffer(piece.data[5:], np.uint8),
        lambda piece: piece.data[5:6],
    ],
    ids=["slice", "dtype", "rows", "buffer", "memoryview"],
)
def test_recycled_memory_is_handed_out_again_when_its_last_view_is_gone_and_not_before(
    view_of: Callable[[np.ndarray], Any],
) -> None:
    memory = Recycled(8 << 20)
    piece = memory.take(1 << 20)
    place, view = piece.ctypes.data, view_of(piece)
    del piece
    assert memory.take(1 << 20).ctypes.data != place
    del view
    assert place in {one.ctypes.data for one in [memory.take(1 << 20) for _ in range(2)]}


def test_what_waits_for_its_next_use_stays_within_the_limit() -> None:
    memory = Recycled(3 << 20)
    pieces = [memory.take(1 << 20) for _ in range(5)]
    places = {piece.ctypes.data for piece in pieces}
    pieces.clear()
    kept = sum(map(len, memory._waiting.values()))
    assert (kept, memory._waiting_nbytes) == (3, 3 << 20)
    pieces = [memory.take(1 << 20) for _ in range(3)]
    assert {piece.ctypes.data for piece in pieces} <= places
    assert memory._waiting_nbytes == 0


@given(st.lists(st.integers(0, 3 << 20), min_size=1, max_size=8))
def test_recycled_pieces_are_their_owners_own_and_little_larger_than_asked_for(sizes: list[int]) -> None:
    memory = Recycled(4 << 20)
    for _ in range(2):
        pieces = [memory.take(size) for size in sizes]
        for number, piece in enumerate(pieces):
            piece.fill(number)
        for number, (piece, size) in enumerate(zip(pieces, sizes, strict=True)):
            assert (piece.size, piece.flags.writeable, bool(np.all(piece == number))) == (size, True, True)
            owner = piece.base.size if piece.base is not None else piece.size
            assert owner <= size + size // 32
        del pieces, piece


def test_threads_that_take_and_let_go_never_share_memory() -> None:
    memory = Recycled(4 << 20)

    def work(number: int) -> bool:
        for _ in range(50):
            piece = memory.take(300_000 + 1000 * (number % 3))
            piece.fill(number)
            if not np.all(piece == number):
                return False
        return True

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(4)))
