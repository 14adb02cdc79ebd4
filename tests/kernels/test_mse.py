from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arrowquant_dist.config import BITS
from tests.kernels import reference
from tests.kernels.weights import Group, group_spec, groups, matrices, numerics, quantized

_TYPES = sorted(BITS)
_ZERO_POINTS = ("none", "real", "whole")
# What rounding the scale to 8 bits, and a real zero point to 1/64, may cost: a share of the span of the levels.
_SCALE_ROUNDING = {"int2": 2.0**-7, "int3": 2.0**-7, "int4": 2.0**-7, "int8": 2.0**-11}


def _span(group: Group, zero_points: str) -> float:
    """The range that the levels have to reach over."""
    x = group.values.astype(np.float64)
    if zero_points == "none":
        return 2 * float(np.abs(x).max())
    return (
        float(max(x.max(), 0.0) - min(x.min(), 0.0)) if zero_points == "whole" else float(x.max() - x.min())
    )


@numerics
@given(
    matrices(),
    st.sampled_from(_TYPES),
    st.sampled_from([0, 2, 8, 16]),
    st.sampled_from(_ZERO_POINTS),
)
def test_no_group_has_more_error_than_under_rtn(
    weights: np.ndarray, quant_type: str, group_size: int, zero_points: str
) -> None:
    source = torch.from_numpy(weights)
    mse, rtn = (
        groups(source, quantized(source, group_spec(quant_type, group_size, method, zero_points)))
        for method in ("mse", "rtn")
    )
    for ours, theirs in zip(mse, rtn, strict=True):
        x = ours.values.astype(np.float64)
        float_rounding = 2.0**-21 * float(np.abs(x).max()) + 2.0**-148
        rounding = _SCALE_ROUNDING[quant_type] * _span(ours, zero_points) + float_rounding
        allowed = 1.001 * theirs.squared_error**0.5 + x.size**0.5 * rounding
        assert ours.squared_error**0.5 <= allowed


@pytest.mark.parametrize("zero_points", _ZERO_POINTS)
@pytest.mark.parametrize("quant_type", ["int2", "int3", "int4"])
def test_real_weights_have_clearly_less_error_than_under_rtn(quant_type: str, zero_points: str) -> None:
    source = torch.randn(64, 512, generator=torch.Generator().manual_seed(3)) * 0.02
    mse, rtn = (
        quantized(source, group_spec(quant_type, 128, method, zero_points)).metrics["mse"]
        for method in ("mse", "rtn")
    )
    assert mse < 0.95 * rtn


@pytest.mark.parametrize("quant_type", ["int2", "int3", "int4"])
def test_groups_far_from_zero_lose_no_more_than_those_about_it(quant_type: str) -> None:
    """The zero point is many steps away there, so it has to follow the rounding of the scale."""
    source = torch.randn(64, 512, generator=torch.Generator().manual_seed(3))
    spec = group_spec(quant_type, 128, "mse", "real")
    near, far = (quantized(source + offset, spec).metrics["mse"] for offset in (0.0, 300.0))
    assert far == pytest.approx(near, rel=0.01)


@pytest.mark.parametrize("zero_points", ["none", "real"])
def test_small_groups_come_near_the_best_of_all_codes(zero_points: str) -> None:
    source = torch.randn(120, 6, generator=torch.Generator().manual_seed(4))
    best = reference.best_symmetric_error if zero_points == "none" else reference.best_asymmetric_error
    ratios = []
    for group in groups(source, quantized(source, group_spec("int2", 0, "mse", zero_points))):
        x = group.values.astype(np.float64)
        least = best(x, 2)
        assert group.squared_error >= least * (1 - 1e-9)
        ratios.append((group.squared_error + 1e-4 * x @ x) / (least + 1e-4 * x @ x))
    assert np.median(ratios) < 1.05
    assert np.mean(ratios) < 1.5


@pytest.mark.parametrize("zero_points", ["none", "real", "whole"])
@pytest.mark.parametrize("quant_type", ["int2", "int3", "int4"])
def test_a_lattice_of_bfloat16_steps_is_found_again(quant_type: str, zero_points: str) -> None:
    """Weights that are quantized already, as of a model trained with so many levels, lose nothing that is visible."""
    qmin, qmax = reference.limits(BITS[quant_type])
    generator = torch.Generator().manual_seed(5)
    levels = torch.randint(-qmax if zero_points == "none" else qmin, qmax + 1, (8, 512), generator=generator)
    levels[:, ::32] = qmax
    levels[:, 1::32] = -qmax if zero_points == "none" else qmin
    source = levels * torch.tensor(0.0173).to(torch.bfloat16).to(torch.float32)
    q = quantized(source, group_spec(quant_type, 128, "mse", zero_points))
    np.testing.assert_allclose(q.values(), source.numpy(), atol=0.0173 / 50)


@numerics
@given(matrices(), st.sampled_from(["int2", "int3", "int4"]), st.sampled_from(_ZERO_POINTS))
def test_scales_below_8_bits_are_bfloat16_numbers(
    weights: np.ndarray, quant_type: str, zero_points: str
) -> None:
    """Except where a group is constant, or near the ends of float32: those have rtn's scale."""
    source = torch.from_numpy(weights)
    for group in groups(source, quantized(source, group_spec(quant_type, 8, "mse", zero_points))):
        half_span = (float(group.values.max()) - float(group.values.min())) / 2
        if half_span > 1.01e-30 and np.abs(group.values).max() < 0.99e37:
            assert group.scale.view(np.uint32) & 0xFFFF == 0


@numerics
@given(matrices(), st.sampled_from(_TYPES))
def test_whole_zero_points_are_levels(weights: np.ndarray, quant_type: str) -> None:
    qmin, qmax = reference.limits(BITS[quant_type])
    for method in ("rtn", "mse"):
        q = quantized(torch.from_numpy(weights), group_spec(quant_type, 8, method, "whole"))
        assert (q.zero_points == np.rint(q.zero_points)).all()
        assert ((q.zero_points >= qmin) & (q.zero_points <= qmax)).all()


def test_a_negative_scale_serves_groups_with_a_long_positive_tail() -> None:
    """The levels are lopsided, -2 … 1: turned round they reach twice as far up."""
    source = torch.tensor([[1.0, 1.0, -1.0, -1.0, 2.0, 2.0, -1.0, 1.0]])
    q = quantized(source, group_spec("int2", 0, "mse"))
    assert q.scales[0] < 0
    np.testing.assert_allclose(q.values(), source.numpy(), rtol=0.01)


@pytest.mark.parametrize("zero_points", _ZERO_POINTS)
@pytest.mark.parametrize("quant_type", _TYPES)
def test_the_magnitude_of_the_weights_changes_no_code(quant_type: str, zero_points: str) -> None:
    """Powers of two are exact, so the search must take the same way from 2^-80 to 2^100."""
    source = torch.randn(8, 96, generator=torch.Generator().manual_seed(6))
    spec = group_spec(quant_type, 32, "mse", zero_points)
    expected = quantized(source, spec)
    for exponent in (-80, -20, 20, 100):
        scaled = quantized(source * 2.0**exponent, spec)
        np.testing.assert_array_equal(scaled.codes, expected.codes)
        np.testing.assert_array_equal(scaled.scales, expected.scales * np.float32(2.0**exponent))
