"""`size`: steps in proportion to a row's magnitude, codes that take few bits, and the scale that fits them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.methods import Given
from arrowquant_dist.methods.size import relative_steps
from arrowquant_dist.tensor import QuantizedTensor, quantize_values
from tests.kernels import reference
from tests.kernels.weights import DTYPES, matrices, numerics

_SPEC = QuantSpec("int8", group_size=0, method="size", step=0.5, rate=0.1155)


def quantized(weight: torch.Tensor, spec: QuantSpec, row_start: int = 0) -> QuantizedTensor:
    values = weight.contiguous().view(torch.uint8).numpy().reshape(-1)
    name = str(weight.dtype).removeprefix("torch.")
    return quantize_values(values, tuple(weight.shape), name, spec, given=Given(row_start=row_start))


def codes_of(tensor: QuantizedTensor) -> np.ndarray:
    rows, columns = tensor.matrix_shape
    bits = 8 if tensor.quant_type == "int8" else 4
    return reference.unpacked_rows(tensor.codes.tobytes(), rows, columns, bits)


def gaussian(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32))


def expected_codes(row: np.ndarray, step: float, rate: float) -> np.ndarray:
    """In float64: each boundary between two codes lies 1.02 · step · rate steps further out than their middle."""
    width = step * np.sqrt((row**2).mean())
    shift = min(1.02 * rate * step, 0.5)
    codes: np.ndarray = np.sign(row) * np.maximum(np.ceil(np.abs(row) / width - 0.5 - shift), 0)
    return codes


@pytest.mark.parametrize("step", [0.2, 0.65, 1.5, 4.0])
@pytest.mark.parametrize("rate", [0.0, 0.1155])
def test_codes_are_steps_of_the_row_s_size_with_boundaries_moved_outwards(step: float, rate: float) -> None:
    weight = gaussian(5, 301) * torch.tensor([[1.0], [0.02], [7.0], [1e-3], [300.0]])
    found = codes_of(quantized(weight, replace(_SPEC, step=step, rate=rate)))
    for row, codes in zip(weight.double().numpy(), found, strict=True):
        assert np.array_equal(codes, expected_codes(row, step, rate))


@numerics
@given(matrices(), st.sampled_from(["int8", "int4"]), st.floats(0.05, 4.0), st.sampled_from(DTYPES))
def test_scales_are_those_of_least_squared_error_for_the_codes(
    values: np.ndarray, quant_type: str, step: float, dtype: torch.dtype
) -> None:
    weight = torch.from_numpy(np.clip(values, -6e4, 6e4)).to(dtype)
    tensor = quantized(weight, replace(_SPEC, quant_type=quant_type, step=step))
    for row, codes, scale in zip(weight.double().numpy(), codes_of(tensor), tensor.scales, strict=True):
        squares = float((codes**2).sum())
        if squares == 0 or row.min() == row.max() or not 1e-29 < np.abs(row).max() < 1e36:
            continue
        best = float(codes @ row) / squares
        assert abs(scale - best) <= abs(best) * 2.0**-8
        assert scale == torch.tensor(scale).bfloat16().float()


@numerics
@given(matrices(), st.sampled_from(["int8", "int4"]), st.floats(0.05, 4.0))
def test_errors_are_those_of_the_decoded_values(values: np.ndarray, quant_type: str, step: float) -> None:
    tensor = quantized(torch.from_numpy(values), replace(_SPEC, quant_type=quant_type, step=step))
    decoded = codes_of(tensor) * tensor.scales.astype(np.float64)[:, None]
    assert tensor.errors is not None
    assert np.array_equal(
        tensor.dequantize(torch.float32).numpy(),
        codes_of(tensor).astype(np.float32) * tensor.scales[:, None],
    )
    expected = ((values.astype(np.float64) - decoded) ** 2).sum()
    size = (values.astype(np.float64) ** 2).sum()
    assert tensor.errors.sum_e2 == pytest.approx(expected, rel=1e-4, abs=1e-12 * size + 1e-300)


@numerics
@given(st.integers(1, 9), st.floats(-3, 3, width=32))
def test_a_constant_row_is_exact(columns: int, value: float) -> None:
    weight = torch.full((2, columns), value)
    assert torch.equal(quantized(weight, _SPEC).dequantize(torch.float32), weight)


@numerics
@given(st.integers(1, 30), st.integers(0, 29), st.sampled_from([0.0, 0.15, 0.5]))
def test_a_row_is_the_same_in_any_row_block(rows: int, cut: int, exponent: float) -> None:
    cut = min(cut, rows)
    weight, spec = gaussian(rows, 37, rows), replace(_SPEC, row_exponent=exponent)
    whole = quantized(weight, spec)
    parts = [
        quantized(part, spec, first) for first, part in ((0, weight[:cut]), (cut, weight[cut:])) if len(part)
    ]
    assert np.concatenate([part.codes for part in parts]).tobytes() == whole.codes.tobytes()
    assert np.concatenate([part.scales for part in parts]).tobytes() == whole.scales.tobytes()


@pytest.mark.parametrize("exponent", [0.05, 0.15, 0.5])
def test_steps_of_rows_that_come_later_are_coarser(exponent: float) -> None:
    spec = replace(_SPEC, row_exponent=exponent)
    steps = relative_steps(spec, 0, 100_000)
    assert (np.diff(steps) >= 0).all()
    exact = spec.step * np.arange(1.0, 100_001) ** exponent
    assert np.abs(steps / exact - 1).max() < 0.1
    assert steps[0] == spec.step
    assert np.array_equal(relative_steps(spec, 777, 50), steps[777:827])


def test_one_value_far_from_the_others_is_not_cut_where_all_steps_may_be_wider() -> None:
    weight = gaussian(1, 4096) * 0.05
    weight[0, 9] = 3.0  # 60 times the row's size: 1.6 times what 127 steps reach
    tensor = quantized(weight, replace(_SPEC, step=0.05))
    assert codes_of(tensor)[0, 9] == 127
    assert tensor.dequantize(torch.float32)[0, 9].item() == pytest.approx(3.0, rel=0.01)


def test_one_value_is_cut_where_wider_steps_cost_all_others_more() -> None:
    weight = gaussian(1, 4096) * 0.05
    weight[0, 9] = 0.35  # 7 times the row's size, 10 steps
    tensor = quantized(weight, replace(_SPEC, quant_type="int4", step=0.7))
    assert codes_of(tensor)[0, 9] == 7
    other = np.delete(codes_of(tensor)[0], 9)
    row = np.delete(weight[0].double().numpy(), 9)
    width = 0.7 * float((weight.double() ** 2).mean().sqrt())
    assert np.array_equal(
        other, np.sign(row) * np.maximum(np.ceil(np.abs(row) / width - 0.5 - 1.02 * 0.1155 * 0.7), 0)
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused_by_their_place(bad: float) -> None:
    weight = gaussian(3, 8)
    weight[1, 5] = bad
    with pytest.raises(Exception, match=r"at index \[1, 5\]"):
        quantized(weight, _SPEC)
