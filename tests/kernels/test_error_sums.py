from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given

from arrowquant_dist.config import BITS, QuantSpec
from tests.kernels.weights import group_spec, numerics, quantized, sources, specs, tensor_spec


def _expected(source: torch.Tensor, spec: QuantSpec) -> tuple[float, float, float, float]:
    """Σw², Σŵ², Σ(w-ŵ)², max|w-ŵ| in float64."""
    w = source.to(torch.float64).numpy().ravel()
    d = quantized(source, spec).values("float32").astype(np.float64).ravel()
    e = w - d
    return float(w @ w), float(d @ d), float(e @ e), float(np.abs(e).max())


def _assert_close(source: torch.Tensor, spec: QuantSpec) -> None:
    errors = quantized(source, spec).errors
    assert errors is not None
    assert errors.count == source.numel()
    w2, d2, e2, top = _expected(source, spec)
    denormal = 1e-80 * source.numel()  # the squares of what float32 rounds away at its lower end
    assert errors.sum_w2 == pytest.approx(w2, rel=1e-5, abs=denormal)
    assert errors.sum_d2 == pytest.approx(d2, rel=1e-5, abs=denormal)
    # w - ŵ is rounded to float32, where one of them is far larger than their difference
    rounding = 2.0**-24 * (w2**0.5 + d2**0.5)
    assert errors.sum_e2**0.5 == pytest.approx(e2**0.5, rel=1e-5, abs=rounding + denormal**0.5)
    assert errors.max_error == pytest.approx(top, rel=1e-6, abs=1e-44)


@numerics
@given(sources(), specs())
def test_sums_are_those_of_float64(source: torch.Tensor, spec: QuantSpec) -> None:
    _assert_close(source, spec)


@pytest.mark.parametrize("magnitude", [1e-38, 1e-30, 1e-18, 1.0, 1e18, 1e30, 3e37])
@pytest.mark.parametrize("quant_type", sorted(BITS))
def test_extreme_magnitudes_neither_overflow_nor_vanish(quant_type: str, magnitude: float) -> None:
    source = torch.randn(3, 9001, generator=torch.Generator().manual_seed(7)) * magnitude
    for method in ("rtn", "mse"):
        for spec in (group_spec(quant_type, 0, method, "real"), group_spec(quant_type, 64, method)):
            _assert_close(source, spec)
        _assert_close(source, tensor_spec(quant_type, method))


def test_long_rows_lose_no_digits() -> None:
    """Sums in float32 over a row of a million values would."""
    _assert_close(
        torch.rand(1, 1 << 20, generator=torch.Generator().manual_seed(8)) + 1, group_spec("int4", 0, "rtn")
    )
