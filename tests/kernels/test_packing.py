from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arrowquant_dist.kernels.pack import pack_row, packed_nbytes, unpack_row
from tests.kernels import reference
from tests.kernels.weights import numerics


@st.composite
def _code_rows(draw: st.DrawFn) -> tuple[int, list[list[int]]]:
    """(bits, rows of signed codes)"""
    bits = draw(st.sampled_from([2, 3, 4]))
    columns = draw(st.integers(1, 70))
    code = st.integers(*reference.limits(bits))
    rows = draw(st.lists(st.lists(code, min_size=columns, max_size=columns), min_size=1, max_size=4))
    return bits, rows


def _as_bytes(rows: list[list[int]]) -> np.ndarray:
    """uint8: two's complement"""
    return np.array(rows, np.int8).view(np.uint8)


def _packed(bits: int, rows: list[list[int]]) -> np.ndarray:
    """Into memory full of ones, so that a spare bit that is not written shows."""
    packed = np.full((len(rows), packed_nbytes(len(rows[0]), bits)), 255, np.uint8)
    for row, out in zip(_as_bytes(rows), packed, strict=True):
        pack_row(row, bits, out)
    return packed


def _unpacked(bits: int, rows: list[list[int]]) -> np.ndarray:
    """uint8: what comes back, in memory that held something else."""
    codes = np.full((len(rows), len(rows[0])), 99, np.uint8)
    for packed, out in zip(_packed(bits, rows), codes, strict=True):
        unpack_row(packed, bits, out)
    return codes


@numerics
@given(_code_rows())
def test_rows_are_the_plain_little_endian_number(case: tuple[int, list[list[int]]]) -> None:
    bits, rows = case
    assert [row.tobytes() for row in _packed(bits, rows)] == [reference.packed_row(row, bits) for row in rows]


@numerics
@given(_code_rows())
def test_unpacking_gives_the_codes_back(case: tuple[int, list[list[int]]]) -> None:
    bits, rows = case
    np.testing.assert_array_equal(_unpacked(bits, rows), _as_bytes(rows))


@numerics
@given(_code_rows())
def test_spare_bits_are_0(case: tuple[int, list[list[int]]]) -> None:
    bits, rows = case
    used = len(rows[0]) * bits % 8
    if used:
        assert (_packed(bits, rows)[:, -1] >> used == 0).all()


@pytest.mark.parametrize(("bits", "columns"), [(2, 16), (2, 48), (4, 8), (4, 40)])
def test_rows_are_compressed_tensors_int32_words(bits: int, columns: int) -> None:
    codes = np.random.default_rng(bits).integers(*reference.limits(bits), columns, endpoint=True).tolist()
    assert _packed(bits, [codes])[0].view("<u4").tolist() == reference.int32_words(codes, bits)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_every_code_at_every_place_of_a_byte_survives(bits: int) -> None:
    low, high = reference.limits(bits)
    rows = [
        [code if place == j else low for j in range(9)] for code in range(low, high + 1) for place in range(9)
    ]
    np.testing.assert_array_equal(_unpacked(bits, rows), _as_bytes(rows))


@pytest.mark.parametrize(
    ("columns", "bits", "nbytes"),
    [(1, 2, 1), (4, 2, 1), (5, 2, 2), (8, 3, 3), (9, 3, 4), (3, 4, 2), (7, 8, 7)],
)
def test_a_row_takes_whole_bytes(columns: int, bits: int, nbytes: int) -> None:
    assert packed_nbytes(columns, bits) == nbytes
