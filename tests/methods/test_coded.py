"""gptq in steps: the codes of the paper's algorithm, with boundaries that move away from zero and one scale per row of
W*."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.tensor import QuantizedTensor, quantize_layer
from tests.kernels import reference
from tests.methods import plain_gptq
from tests.methods.statistics_made import Parts, statistics

ROWS, COLUMNS = 300, 200
SPEC = QuantSpec("int8", group_size=0, method="gptq", step=0.5, rate=0.1155)


def weights(rows: int = ROWS, columns: int = COLUMNS, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def quantized(weight: np.ndarray, spec: QuantSpec, parts: Parts) -> QuantizedTensor:
    raw = np.ascontiguousarray(weight).reshape(-1).view(np.uint8)
    return quantize_layer(raw, weight.shape, "float32", spec, parts, "layer")


def codes_of(found: QuantizedTensor) -> np.ndarray:
    rows, columns = found.matrix_shape
    bits = 8 if found.quant_type == "int8" else 4
    return reference.unpacked_rows(found.codes.tobytes(), rows, columns, bits)


def expected_codes(
    target: np.ndarray, hessian: np.ndarray, scales: np.ndarray, spec: QuantSpec, damp: float
) -> np.ndarray:
    """In float64, with the inverse's Cholesky factor U: an error of column k costs 1/U_kk² times its square."""
    rest, n = target.astype(np.float64).copy(), target.shape[1]
    damped = hessian.astype(np.float64) + damp * hessian.diagonal().mean() * np.eye(n)
    order = np.argsort(hessian.diagonal(), kind="stable")[::-1]
    upper = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    cost = 1.0 / upper.diagonal() ** 2
    shifts = np.minimum(1.02 * spec.rate * spec.step * cost.mean() / cost, 0.5)
    most = 2 ** (spec.bits - 1)
    codes = np.empty(rest.shape, np.int64)
    for i, j in enumerate(order):
        value = rest[:, j] / scales
        size = np.rint(np.maximum(np.abs(value) - shifts[i], 0.0))
        codes[:, j] = np.clip(np.copysign(size, value), -most, most - 1)
        error = (rest[:, j] - codes[:, j] * scales) / upper[i, i]
        rest[:, order[i + 1 :]] -= np.outer(error, upper[i, i + 1 :])
    return codes


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize(("quant_type", "step"), [("int8", 0.1), ("int8", 0.6), ("int4", 0.6), ("int4", 2.0)])
@pytest.mark.parametrize("rate", [0.0, 0.1155])
def test_codes_are_those_of_the_paper_s_algorithm_rounded_inwards(
    quant_type: str, step: float, rate: float, *, corrected: bool
) -> None:
    """But for ties and what follows from them in their rows, for float32 stands against float64."""
    weight, parts = weights(), statistics(ROWS, COLUMNS, corrected=corrected)
    hessian, spec = (
        parts["hessian"].astype(np.float64),
        replace(SPEC, quant_type=quant_type, step=step, rate=rate),
    )
    damp, target = 0.01, weight.astype(np.float64)
    if corrected:
        damp = 0.1
        target = plain_gptq.target(target, hessian, parts["cross"], parts["residual"], damp)
    found = quantized(weight, spec, parts)
    rms = np.sqrt((target**2).mean(axis=1))
    np.testing.assert_allclose(found.scales, step * rms, rtol=2.0**-8)
    scales, got = found.scales.astype(np.float64), codes_of(found)
    expected = expected_codes(target, hessian, scales, spec, damp)
    assert (got != expected).any(axis=1).mean() <= 0.02
    assert np.abs(got - expected).max() <= 3
    decoded = got * scales[:, None]
    assert found.errors is not None
    assert found.errors.sum_e2 == pytest.approx(((weight - decoded) ** 2).sum(), rel=1e-5)


@given(rows=st.integers(2, 40), columns=st.integers(2, 60), seed=st.integers(0, 1 << 30))
@settings(max_examples=20)
def test_a_row_s_codes_do_not_depend_on_the_others(rows: int, columns: int, seed: int) -> None:
    weight, parts = weights(rows, columns, seed), statistics(rows, columns, seed)
    whole, one = quantized(weight, SPEC, parts), quantized(weight[rows // 2 :][:1], SPEC, parts)
    assert codes_of(whole)[rows // 2].tolist() == codes_of(one)[0].tolist()
    assert whole.scales[rows // 2] == one.scales[0]


def test_a_rate_takes_bits_for_little_error() -> None:
    """By a tenth of the entropy that steps of the same error would take off without it."""
    weight, parts = weights(), statistics(ROWS, COLUMNS)
    plain, cheap = (quantized(weight, replace(SPEC, step=0.8, rate=rate), parts) for rate in (0.0, 0.1155))
    assert entropy(codes_of(cheap)) < entropy(codes_of(plain)) - 0.03


def entropy(codes: np.ndarray) -> float:
    counts = np.unique(codes, return_counts=True)[1] / codes.size
    return float(-(counts * np.log2(counts)).sum())


def test_a_row_of_zeros_stays_one() -> None:
    weight, parts = weights(3, 20), statistics(3, 20)
    weight[1] = 0.0
    found = quantized(weight, SPEC, parts)
    assert not codes_of(found)[1].any()
    assert np.isfinite(found.scales).all()
