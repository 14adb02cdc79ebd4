"""One input times packed rows, with vector instructions where possible, compared with the same sums in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_dist.kernels.products.arranged import AT_ONCE, arranged_input, taken
from arrowquant_dist.kernels.products.rows import multiply_one
from tests.modules.matrices import Matrix, random_matrix

_WIDTHS, _ZEROS = (8, 4, 3, 2), ("none", "whole", "real", "far")
_UNIT = 2.0**-24


def _product(matrix: Matrix, values: np.ndarray, runs: list[tuple[int, int]]) -> np.ndarray:
    codes, scales, zero_points = matrix.weight.packed.arrays()
    bits, group = matrix.weight.bits, matrix.weight.group_size
    out = np.full(codes.shape[0], np.nan, np.float32)
    met = (values, *arranged_input(values, bits, group, zero_points))
    for start, stop in runs:
        scratch = np.empty(values.size, np.uint8)
        multiply_one(codes, bits, group, scales, zero_points, *met, start, stop, scratch, out)
    return out


def _check(matrix: Matrix, values: np.ndarray, found: np.ndarray) -> None:
    """To eight roundings of the sum of magnitudes, where the zero points' are looked at beside the codes'."""
    wide, decoded = values.astype(np.float64), matrix.values.astype(np.float64)
    sizes = np.abs(decoded)
    points = matrix.packed.zero_points.reshape(len(decoded), -1)
    if points.size and np.abs(points).max() < 1000:
        scales = matrix.packed.scales.reshape(points.shape)
        each = np.repeat(np.abs(points) * scales, matrix.weight.group_size, axis=1)
        sizes = sizes + each[:, : sizes.shape[1]]
    assert np.all(np.abs(found - decoded @ wide) <= 8 * _UNIT * (sizes @ np.abs(wide)))


@settings(max_examples=150)
@given(
    st.integers(1, 19),
    st.sampled_from([16, 32, 64, 128, 256]) | st.integers(1, 300),
    st.integers(0, 5),
    st.integers(0, 140),
    st.sampled_from(_WIDTHS),
    st.sampled_from(_ZEROS),
    st.integers(0, 30),
)
def test_one_input_stays_within_its_rounding(
    rows: int, group: int, groups: int, more: int, bits: int, zeros: str, cut: int
) -> None:
    """groups: 0 for one scale a row. Rows go in two runs, as two threads take them."""
    columns = max(1, group * groups + more)
    matrix = random_matrix(rows, columns, bits, group if 0 < group * groups < columns else 0, zeros, cut % 3)
    values = np.random.default_rng(cut).standard_normal(columns).astype(np.float32)
    bound = min(cut, rows) // 4 * 4
    _check(matrix, values, _product(matrix, values, [(0, bound), (bound, rows)]))


@pytest.mark.skipif(not AT_ONCE, reason="no machine code is made here")
def test_vectors_take_the_forms_that_models_have() -> None:
    forms = [
        (8, 4096, 4096),
        (8, 128, 4096),
        (8, 32, 4096),
        (4, 4096, 4096),
        (4, 128, 4096),
        (4, 32, 4096),
        (4, 16, 4096),
        (2, 4096, 4096),
        (2, 128, 4096),
        (2, 64, 4096),
        (2, 32, 4096),
    ]
    assert [taken(*form)[0] for form in forms] == [4096] * len(forms)
    assert taken(4, 128, 4096 + 64)[0] == 4096  # a short last group
    assert taken(2, 1600, 1600)[0] == 1536
    assert taken(3, 128, 4096)[0] == 0
    assert taken(4, 96, 4096)[0] == 0
    assert taken(8, 8, 4096)[0] == 0


@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("size", [1e-44, 1e-36, 1e-24, 1e30])
def test_inputs_of_any_size_keep_their_digits(bits: int, size: float) -> None:
    """Vectors divide inputs by up to 2^20, which those near the least float32 would not bear."""
    matrix = random_matrix(8, 256, bits)
    values = (np.random.default_rng(3).uniform(1, 2, 256) * size).astype(np.float32)
    found = _product(matrix, values, [(0, 8)])
    exact = matrix.values.astype(np.float64) @ values.astype(np.float64)
    sizes = np.abs(matrix.values).astype(np.float64) @ np.abs(values).astype(np.float64)
    assert np.all(np.abs(found - exact) <= 16 * _UNIT * sizes + 256 * 2.0**-149)


@pytest.mark.parametrize("bits", _WIDTHS)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_an_input_that_is_not_finite_meets_decoded_values(bits: int, value: float) -> None:
    matrix = random_matrix(8, 256, bits, 128, "real")
    values = np.ones(256, np.float32)
    values[200] = value
    with np.errstate(invalid="ignore"):
        expected = matrix.values @ values
    np.testing.assert_array_equal(np.isnan(_product(matrix, values, [(0, 8)])), np.isnan(expected))
    found = _product(matrix, values, [(0, 8)])
    np.testing.assert_array_equal(np.sign(found[np.isinf(expected)]), np.sign(expected[np.isinf(expected)]))


def test_rows_with_far_zero_points_are_multiplied_as_they_are_decoded() -> None:
    """One such group in one row: its neighbours go by vectors or not, to the same within rounding."""
    near = random_matrix(12, 256, 4, 128, "real")
    weight = near.weight
    weight.zero_points[5, 1] = 1e6
    values = torch.randn(1, 256, generator=torch.Generator().manual_seed(2))
    codes, scales, points = weight.packed.arrays()
    out = np.empty(12, np.float32)
    plain = values.numpy()[0]
    met = (plain, *arranged_input(plain, 4, 128, points))
    multiply_one(codes, 4, 128, scales, points, *met, 0, 12, np.empty(256, np.uint8), out)
    decoded = weight.dequantize().double()
    error = (torch.from_numpy(out).double() - decoded @ values[0].double()).abs()
    assert bool((error <= 16 * _UNIT * (decoded.abs() @ values[0].double().abs())).all())
