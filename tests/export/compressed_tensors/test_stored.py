"""What is said about a layer's scales is what rounding each of them by torch's own conversions gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arrowquant_dist.export.compressed_tensors.stored import scales_of

NONE = np.empty(0, np.float32)
WORDS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
LEAST, LARGEST = 2.0**-17, 65280.0  # of the bfloat16 numbers all of which float16 has


def held_by(scales: np.ndarray) -> set[str]:
    values = torch.from_numpy(scales.copy())
    return {word for word, dtype in WORDS.items() if torch.equal(values.to(dtype).float(), values)}


@given(st.lists(st.floats(width=16, allow_nan=False, allow_infinity=False), min_size=1, max_size=9))
def test_numbers_of_float16_are_held_by_what_holds_each_of_them(values: list[float]) -> None:
    scales = np.array(values, np.float32)
    assert scales_of(scales, NONE, 4).held_by == held_by(scales)


@given(st.lists(st.integers(0, 0x7F7F), min_size=1, max_size=9))
def test_numbers_of_bfloat16_are_held_by_what_holds_each_of_them(bits: list[int]) -> None:
    scales = (np.array(bits, np.uint32) << 16).view(np.float32)
    assert scales_of(scales, NONE, 4).held_by == held_by(scales)


@pytest.mark.parametrize(
    ("scales", "expected"),
    [
        ([LEAST, LARGEST, 0.02001953125], {"F32", "BF16", "F16"}),
        ([LEAST, 0.0], {"F32", "BF16", "F16"}),
        ([-LEAST, -LARGEST], {"F32", "BF16", "F16"}),
        ([LEAST * (1 - 2.0**-8)], {"F32", "BF16"}),
        ([65536.0], {"F32", "BF16"}),
        ([1.0, 1.0 + 2.0**-10], {"F32", "F16"}),
        ([1.0, 0.1], {"F32"}),
    ],
)
def test_the_bounds_of_what_is_held(scales: list[float], expected: set[str]) -> None:
    values = np.array(scales, np.float32)
    assert held_by(values) == expected
    assert scales_of(values, NONE, 4).held_by == expected


@pytest.mark.parametrize("zero_points", [[-8.0, 7.0], [0.5, 0.0], [8.0, 0.0], [-9.0, 0.0]])
@pytest.mark.parametrize("scale", [0.02001953125, 0.02])
def test_zero_points_are_whole_where_each_could_be_a_code_whatever_the_scales(
    zero_points: list[float], scale: float
) -> None:
    found = scales_of(np.full(2, scale, np.float32), np.array(zero_points, np.float32), 4)
    assert (found.symmetric, found.whole) == (False, zero_points == [-8.0, 7.0])
