from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arrowquant_dist.arena import Arena, Slabs


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
