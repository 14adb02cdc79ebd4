from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given

from arrowquant_dist.config import BITS, QuantSpec
from arrowquant_dist.tensor import QuantizedTensor
from tests.kernels import reference
from tests.kernels.weights import (
    DTYPES,
    FLOAT32_MAX,
    Group,
    group_spec,
    groups,
    numerics,
    quantized,
    sources,
    specs,
    tensor_spec,
)

_ULP = 2.0**-23
_DENORMAL = 2.0**-149
_TYPES = sorted(BITS)
_ZERO_POINTS = ("none", "real", "whole")


def _formula_scale(group: Group, spec: QuantSpec) -> float:
    values = [float(x) for x in group.values]
    if spec.symmetric:
        return reference.symmetric_scale(values, spec.bits)
    if spec.integer_zero_points:
        return reference.whole_asymmetric_scale(values, spec.bits)
    return reference.asymmetric_scale(values, spec.bits)


def _levels_may_overflow(group: Group) -> bool:
    return float(np.abs(group.values).max()) > FLOAT32_MAX / 2


@numerics
@given(sources(), specs("rtn"))
def test_scales_are_the_formulas_to_one_ulp(source: torch.Tensor, spec: QuantSpec) -> None:
    for group in groups(source, quantized(source, spec)):
        formula = _formula_scale(group, spec)
        if formula == 0.0 or group.values.min() == group.values.max() or _levels_may_overflow(group):
            continue  # the formula has no scale there, another is more exact, or its levels are not finite
        assert abs(float(group.scale) - formula) <= np.spacing(np.float32(formula))


@numerics
@given(sources(), specs("rtn"))
def test_zero_points_are_the_formula_for_the_stored_scale(source: torch.Tensor, spec: QuantSpec) -> None:
    qmin, qmax = reference.limits(spec.bits)
    for group in groups(source, quantized(source, spec)):
        low, high = float(group.values.min()), float(group.values.max())
        if spec.symmetric or low == high or _levels_may_overflow(group):
            continue
        if spec.integer_zero_points:
            formula = min(max(round(qmin - min(low, 0.0) / float(group.scale)), qmin), qmax)
            assert float(group.zero_point) == formula
        else:
            assert group.zero_point == np.float32(qmin - low / float(group.scale))


@numerics
@given(sources(), specs())
def test_codes_are_the_reference_s_for_the_stored_scales(source: torch.Tensor, spec: QuantSpec) -> None:
    for group in groups(source, quantized(source, spec)):
        expected = [reference.code(x, group.scale, group.zero_point, spec.bits) for x in group.values]
        np.testing.assert_array_equal(group.codes, expected)


@numerics
@given(sources(), specs("rtn"))
def test_values_decode_to_within_half_a_step(source: torch.Tensor, spec: QuantSpec) -> None:
    for group in groups(source, quantized(source, spec)):
        x = group.values.astype(np.float64)
        scale = float(group.scale)
        # a whole zero point is up to half a step beside the real one, which clips one end
        steps = 1.0 if spec.integer_zero_points else 0.5
        rounding = 4 * _ULP * (np.abs(x) + abs(float(group.zero_point)) * scale) + 2 * _DENORMAL
        assert (np.abs(x - group.decoded) <= steps * scale * (1 + 1e-5) + rounding).all()


@numerics
@given(sources(), specs())
def test_decoded_values_are_the_published_formula(source: torch.Tensor, spec: QuantSpec) -> None:
    q = quantized(source, spec)
    assert np.isfinite(q.scales).all()
    assert np.isfinite(q.zero_points).all()
    expected = np.concatenate([group.decoded for group in groups(source, q)])
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(q.values("float32").ravel(), expected)


def _constants() -> list[float]:
    sizes = [0.0, 1e-45, 7e-45, 2.7e-43, 1e-38, 1.2e-30, 0.3, 1.0, 17.0, 65504.0, 1e30, FLOAT32_MAX]
    return [sign * size for size in sizes for sign in (1.0, -1.0)]


@pytest.mark.parametrize("zero_points", _ZERO_POINTS)
@pytest.mark.parametrize("method", ["rtn", "mse"])
@pytest.mark.parametrize("quant_type", _TYPES)
def test_constant_groups_decode_to_float_rounding(quant_type: str, method: str, zero_points: str) -> None:
    constants = np.array(_constants(), np.float32)
    source = torch.from_numpy(np.repeat(constants[:, None], 5, axis=1))
    for group_size in (0, 2):
        decoded = quantized(source, group_spec(quant_type, group_size, method, zero_points)).values()
        expected = source.numpy().astype(np.float64)
        tolerance = 2 * _ULP * np.abs(expected) + (2 ** BITS[quant_type]) * _DENORMAL
        assert (np.abs(decoded - expected) <= tolerance).all()
        assert (decoded[expected == 0.0] == 0.0).all()


@pytest.mark.parametrize("method", ["rtn", "mse"])
def test_constant_groups_with_real_zero_points_decode_exactly(method: str) -> None:
    source = torch.tensor(_constants()).reshape(-1, 1).repeat(1, 7)
    decoded = quantized(source, group_spec("int2", 3, method, "real")).values()
    np.testing.assert_array_equal(decoded, source.numpy())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("zero_points", _ZERO_POINTS)
@pytest.mark.parametrize("quant_type", _TYPES)
def test_the_largest_values_never_decode_to_inf(
    quant_type: str, zero_points: str, dtype: torch.dtype
) -> None:
    top = torch.finfo(dtype).max
    rows = [[top, -top], [top, top / 3], [-top, top / 5], [-top, 0.0], [top, 0.0], [top, top * (1 - 2**-8)]]
    for method in ("rtn", "mse"):
        for spec in (
            group_spec(quant_type, 0, method, zero_points),
            tensor_spec(quant_type, method, zero_points),
        ):
            q = quantized(torch.tensor(rows, dtype=dtype), spec)
            for wanted in ("float32", "float16"):
                assert np.isfinite(_numbers(q, wanted)).all()
            assert np.isfinite(_numbers(q, "bfloat16")).all()


def _numbers(q: QuantizedTensor, dtype: str) -> np.ndarray:
    decoded: np.ndarray = q.dequantize(getattr(torch, dtype)).to(torch.float64).numpy()
    return decoded


@pytest.mark.parametrize("zero_points", ["none", "real"])
@pytest.mark.parametrize("quant_type", _TYPES)
def test_denormal_groups_keep_half_a_step(quant_type: str, zero_points: str) -> None:
    units = np.arange(-200, 201, dtype=np.float64) * _DENORMAL
    source = torch.from_numpy(units.astype(np.float32)).reshape(1, -1)
    for width in (3, 7, 50, 401):
        q = quantized(source[:, :width], group_spec(quant_type, 0, "rtn", zero_points))
        error = np.abs(q.values()[0].astype(np.float64) - units[:width])
        assert error.max() <= float(q.scales[0]) / 2 + 2 * _DENORMAL


@numerics
@given(sources(max_columns=12), specs())
def test_rows_are_quantized_alike_in_any_block(source: torch.Tensor, spec: QuantSpec) -> None:
    if spec.quant_axis < 0:
        return  # the layer's scale is found first: tests/methods/test_per_tensor.py
    whole = quantized(source, spec)
    for i in range(source.shape[0]):
        row, expected = quantized(source[i : i + 1], spec), whole.rows(i, i + 1)
        for name in ("codes", "scales", "zero_points"):
            np.testing.assert_array_equal(getattr(row, name), getattr(expected, name))
