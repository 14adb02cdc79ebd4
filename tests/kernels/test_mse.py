from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from arrowquant_dist.config import BITS
from tests.kernels import reference
from tests.kernels.weights import DTYPES, group_spec, groups, matrices, numerics, quantized, tensor_spec

_TYPES = sorted(BITS)
_ZERO_POINTS = ("none", "real", "whole")
# What float32 rounds where two sums of squared errors are compared.
_FLOAT_ROUNDING = 2e-6


def _check_against_rtn(source: torch.Tensor, quant_type: str, group_size: int, zero_points: str) -> None:
    """group_size: 0 for a scale a row, -1 for one of the tensor."""
    errors = []
    for method in ("mse", "rtn"):
        spec = group_spec(quant_type, group_size, method, zero_points)
        if group_size < 0:
            spec = tensor_spec(quant_type, method, zero_points)
        errors.append([group.squared_error for group in groups(source, quantized(source, spec))])
    for ours, theirs in zip(*errors, strict=True):
        assert ours <= theirs * (1 + _FLOAT_ROUNDING)


@st.composite
def _awkward(draw: st.DrawFn) -> np.ndarray:
    """Few different values, outliers, and mixtures of magnitudes: what the search, or the rounding of its scale, fits
    worse than the plain formula."""
    shape = (draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 7, 32, 130])))
    step = np.float32(draw(st.sampled_from([1.0, 0.0173, 1 / 3, 3e-7, 5e20])))
    few = [float(n) for n in draw(st.lists(st.integers(-8, 8), min_size=1, max_size=4))]
    values = step * draw(hnp.arrays(np.float32, shape, elements=st.sampled_from(few)))
    kind = draw(st.sampled_from(["few", "outlier", "noise", "offset", "mixed"]))
    if kind == "outlier":
        values.flat[draw(st.integers(0, values.size - 1))] = 1e4 * step
    elif kind == "noise":
        noise = np.random.default_rng(draw(st.integers(0, 1000))).standard_normal(shape)
        values += noise.astype(np.float32) * step / 50
    elif kind == "offset":
        values += step * draw(st.sampled_from([100.0, -3.3, 1e5]))
    elif kind == "mixed":
        values *= np.logspace(-12, 0, values.size, dtype=np.float32).reshape(shape)
    return np.asarray(values, np.float32)


@numerics
@given(
    st.one_of(matrices(), _awkward()),
    st.sampled_from(_TYPES),
    st.sampled_from([-1, 0, 2, 8, 16]),
    st.sampled_from(_ZERO_POINTS),
    st.sampled_from(DTYPES),
)
def test_no_group_has_more_error_than_under_rtn(
    weights: np.ndarray, quant_type: str, group_size: int, zero_points: str, dtype: torch.dtype
) -> None:
    top = torch.finfo(dtype).max
    source = torch.from_numpy(weights).clamp(-top, top).to(dtype)
    _check_against_rtn(source, quant_type, group_size, zero_points)


@pytest.mark.parametrize("zero_points", _ZERO_POINTS)
@pytest.mark.parametrize("group_size", [-1, 0, 32, 128])
@pytest.mark.parametrize("quant_type", _TYPES)
def test_ternary_weights_and_outliers_lose_nothing_to_rtn(
    quant_type: str, group_size: int, zero_points: str
) -> None:
    generator = torch.Generator().manual_seed(11)
    ternary = torch.randint(-1, 2, (8, 256), generator=generator) * 0.0371
    outlier = torch.randn(8, 256, generator=generator) * 0.02
    outlier[:, 77] = 1e4
    for source in (ternary, outlier, ternary.abs(), ternary + 0.5, outlier.to(torch.bfloat16)):
        _check_against_rtn(source, quant_type, group_size, zero_points)


def test_ternary_weights_are_exact_at_3_bits() -> None:
    """7 levels hold three: rtn's scale, whose decoded values are the weights, is kept as it is."""
    source = torch.randint(-1, 2, (4, 128), generator=torch.Generator().manual_seed(2)) * 0.0371
    q = quantized(source, group_spec("int3", 128, "mse"))
    np.testing.assert_allclose(q.values(), source.numpy(), rtol=2e-7)


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
    """Except where rtn's are better, as for constant groups, or near the ends of float32."""
    source = torch.from_numpy(weights)
    mse, rtn = (
        groups(source, quantized(source, group_spec(quant_type, 8, method, zero_points)))
        for method in ("mse", "rtn")
    )
    for ours, theirs in zip(mse, rtn, strict=True):
        is_constant = ours.values.min() == ours.values.max()
        assert ours.scale.view(np.uint32) & 0xFFFF == 0 or ours.scale == theirs.scale or is_constant


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
