from __future__ import annotations

import numpy as np
import pytest
import torch

from arrowquant_dist.tensor.source import as_float32, matrix_shape, read_only


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"])
def test_every_float8_code_means_what_torch_says(dtype: str) -> None:
    codes = np.arange(256, dtype=np.uint8)
    expected = torch.from_numpy(codes).view(getattr(torch, dtype)).to(torch.float32).numpy()
    np.testing.assert_array_equal(as_float32(codes, dtype), expected)


def test_every_bfloat16_means_what_torch_says() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    expected = torch.from_numpy(bits).view(torch.bfloat16).to(torch.float32).numpy()
    np.testing.assert_array_equal(as_float32(bits.view(np.uint8), "bfloat16"), expected)


@pytest.mark.parametrize(
    ("shape", "row_dims", "matrix"),
    [
        ((), 1, (1, 1)),
        ((5,), 1, (5, 1)),
        ((3, 4), 1, (3, 4)),
        ((2, 3, 4), 2, (6, 4)),
        ((2, 3, 4, 5), 1, (2, 60)),
    ],
)
def test_rows_are_the_first_dimensions(
    shape: tuple[int, ...], row_dims: int, matrix: tuple[int, int]
) -> None:
    assert matrix_shape(shape, row_dims) == matrix


def test_only_misaligned_arrays_are_copied_to_be_read() -> None:
    values = np.arange(8, dtype=np.float32)
    view = read_only(values)
    assert np.shares_memory(view, values)
    assert not view.flags.writeable
    assert values.flags.writeable
    misaligned = np.zeros(33, np.uint8)[1:].view(np.float32)
    assert read_only(misaligned).flags.aligned
