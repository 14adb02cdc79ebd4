"""Inputs that are quantized to 8 bits follow the formula exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.modules import QuantLinear
from tests.kernels.reference import group_slices, unpacked_rows
from tests.modules.matrices import Matrix, random_matrix


def by_the_formula(values: np.ndarray, matrix: Matrix, bias: np.ndarray) -> np.ndarray:
    """y = t · Σ_groups scale · (Σ a·q - zero point · Σ a) + bias, a = round(x / t), t = max|x| / 127: whole numbers
    are Python's."""
    packed = matrix.packed
    rows, columns = packed.shape
    codes = unpacked_rows(packed.codes.tobytes(), rows, columns, int(packed.quant_type[3:]))
    slices = group_slices(columns, packed.group_size)
    scales = packed.scales.reshape(rows, -1).astype(float)
    points = packed.zero_points.reshape(rows, -1) if packed.zero_points.size else np.zeros_like(scales)
    out = np.empty((len(values), rows))
    for m, x in enumerate(values):
        t = np.float32(np.abs(x).max()) / np.float32(127)
        a = np.rint(x / t).astype(int) if t else np.zeros(columns, int)
        for n in range(rows):
            sums = [
                scales[n, k]
                * (int((a[part] * codes[n, part]).sum()) - float(points[n, k]) * int(a[part].sum()))
                for k, part in enumerate(slices)
            ]
            out[m, n] = float(t) * sum(sums) + bias[n]
    return out


@pytest.mark.parametrize("zeros", ["none", "whole", "real"])
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize(
    ("rows", "columns", "group_size"), [(6, 160, 64), (3, 33, 8), (2, 2500, 0), (1, 1, 0)]
)
def test_products_are_those_of_the_formula(
    rows: int, columns: int, group_size: int, bits: int, zeros: str
) -> None:
    matrix = random_matrix(rows, columns, bits, group_size, zeros)
    values, bias = torch.randn(5, columns), torch.randn(rows)
    values[3] = 0
    product = QuantLinear(matrix.weight, bias, "int8")(values).detach()
    expected = by_the_formula(values.numpy(), matrix, bias.numpy())
    size = float(np.abs(expected).max())
    assert np.allclose(product.numpy(), expected, rtol=1e-5, atol=1e-5 * size)
    assert torch.equal(product[3], bias)


def test_sums_of_the_largest_numbers_are_exact() -> None:
    """127 · -128 in every column: float32 alone would lose ones beyond 1,024 of them."""
    matrix = random_matrix(1, 3 * 1024 + 1, 8)
    weight = matrix.weight
    weight.codes.fill_(0x80)
    weight.scales.fill_(1)
    values = torch.full((1, 3 * 1024 + 1), 127.0)
    values[0, -1] = 1.0
    expected = -(127 * 128 * 3 * 1024) - 128
    assert float(QuantLinear(weight, activations="int8")(values)) == float(np.float32(expected))


def test_inputs_keep_their_dtype_and_shape() -> None:
    layer = QuantLinear(random_matrix(6, 160, 8, 64).weight, activations="int8")
    product = layer(torch.randn(2, 3, 160, dtype=torch.bfloat16))
    assert (product.dtype, product.shape) == (torch.bfloat16, (2, 3, 6))


def test_what_is_not_finite_does_not_become_a_number() -> None:
    layer = QuantLinear(random_matrix(6, 160, 8, 64).weight, activations="int8")
    values = torch.randn(3, 160)
    values[0, 5], values[1, 5] = torch.nan, torch.inf
    product = layer(values)
    assert not product[:2].isfinite().any()
    assert product[2].isfinite().all()


def test_there_are_no_gradients_and_that_is_said() -> None:
    layer = QuantLinear(random_matrix(6, 160, 8, 64).weight, activations="int8")
    product = layer(torch.randn(2, 160, requires_grad=True))
    with pytest.raises(InvalidConfig, match="no gradient"):
        product.sum().backward()


def test_other_activations_are_refused() -> None:
    with pytest.raises(InvalidConfig, match="activations is the text 'fp8'"):
        QuantLinear(random_matrix(6, 160, 8, 64).weight, activations="fp8")  # type: ignore[arg-type]
