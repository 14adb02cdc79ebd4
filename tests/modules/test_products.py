"""Packed products of every form stay within float rounding of the same sums in float64.

The bound: each of the `columns` products is rounded once, and so is each of their sums. Decoding (code - zero point) ·
scale in another order adds two roundings, and scaling a group's sum adds one. To first order, that is (columns + 3) · u
of the sum of magnitudes, with u = 2^-24, in any order of summation.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_dist.modules import QuantLinear, products
from tests.modules.matrices import random_matrix

BATCHES = (0, 1, 2, 3, 7, 8, 9, 31, 32, 33, 64, 100, 257, 1000)
BITS, ZEROS, GROUPS = (8, 4, 3, 2), ("none", "whole", "real", "far"), (0, 13, 32, 128)
WAYS = {"kernels": 0, "decoded": 1 << 60}  # products.LARGE
UNIT = 2.0**-24


def check(
    shape: tuple[int, int, int], bits: int, zeros: str, group: int, threads: int, way: str, seed: int
) -> None:
    """shape: inputs, rows and columns."""
    inputs, rows, columns = shape
    matrix = random_matrix(rows, columns, bits, group if group < columns else 0, zeros, seed % 50)
    values = np.random.default_rng(seed).standard_normal((inputs, columns)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "LARGE", WAYS[way])
        patch.setattr(products, "_WORTH_A_THREAD", 1)
        patch.setattr(torch, "get_num_threads", lambda: threads)
        found = QuantLinear(matrix.weight)(torch.from_numpy(values)).numpy()
    wide, decoded = values.astype(np.float64), matrix.values.astype(np.float64)
    bound = (columns + 3) * UNIT * (np.abs(wide) @ np.abs(decoded).T)
    assert found.shape == (inputs, rows)
    assert found.dtype == np.float32
    assert (np.abs(found - wide @ decoded.T) <= bound).all()


@settings(max_examples=60)
@given(
    st.tuples(st.sampled_from(BATCHES[:10]), st.integers(1, 17), st.integers(1, 67) | st.just(160)),
    st.sampled_from(BITS),
    st.sampled_from(ZEROS),
    st.sampled_from(GROUPS) | st.integers(1, 40),
    st.sampled_from([1, 2]),
    st.sampled_from(sorted(WAYS)),
    st.integers(0, 49),
)
def test_products_stay_within_their_rounding(
    shape: tuple[int, int, int], bits: int, zeros: str, group: int, threads: int, way: str, seed: int
) -> None:
    check(shape, bits, zeros, group, threads, way, seed)


@pytest.mark.slow
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("way", WAYS)
def test_products_of_every_form_stay_within_their_rounding(bits: int, way: str) -> None:
    """Columns and rows go round beside the other numbers: every odd and even count up to 67 comes."""
    others = itertools.product(BATCHES, ZEROS, GROUPS, (1, 2))
    for index, (inputs, zeros, group, threads) in enumerate(others):
        columns = 160 if index % 9 == 0 else 1 + index * 5 % 67
        check((inputs, 1 + index % 17, columns), bits, zeros, group, threads, way, index)
