"""float32 numbers become the float16 numbers that numpy makes of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from arrowquant_dist.kernels import halves
from arrowquant_dist.kernels.halves import to_halves
from arrowquant_dist.kernels.native import Cpu, EachPiece
from tests.kernels.weights import numerics


def assert_as_numpy(values: np.ndarray) -> None:
    with np.errstate(over="ignore", under="ignore"):
        expected = values.astype(np.float16)
    found = to_halves(values)
    is_nan = np.isnan(expected)
    assert found.dtype == np.float16
    assert np.array_equal(np.isnan(found), is_nan)
    assert np.array_equal(found.view(np.uint16)[~is_nan], expected.view(np.uint16)[~is_nan])


def around_every_half() -> np.ndarray:
    """Each float16 number, what lies halfway to the next one, and the float32 numbers on both sides of these."""
    whole = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = (whole[:-1] + whole[1:]) / np.float32(2)
    beyond = np.array([65504, 65519.99, 65520, 65536, 1e10, 3.4e38, np.inf, 1e-45, 1e-30], np.float32)
    sizes = np.concatenate([whole, between, beyond])
    near = [np.nextafter(sizes, np.float32(to)) for to in (0, np.inf)]
    every = np.concatenate([sizes, *near])
    return np.concatenate([every, -every])


def test_every_number_is_rounded_half_to_even() -> None:
    assert_as_numpy(around_every_half())


@numerics
@given(hnp.arrays(np.float32, st.integers(0, 70), elements=st.floats(width=32)))
def test_any_numbers_in_arrays_of_any_length_are_numpy_s(values: np.ndarray) -> None:
    assert_as_numpy(values)


def test_the_plainest_cpu_makes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = EachPiece(halves._body, arrays=2, dimensions=1, cpu=Cpu("", ""))
    monkeypatch.setattr(halves, "_PIECES", plain)
    assert_as_numpy(around_every_half())


def test_numpy_makes_them_where_no_machine_code_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(halves, "_PIECES", None)
    monkeypatch.setattr(halves, "makes_no_code", lambda: True)
    assert_as_numpy(around_every_half())
