"""`counted` with a sensitivity: rows of an embedding are rounded by what a model makes of their errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.errors import InvalidCheckpoint, InvalidConfig, UnquantizableWeights
from arrowquant_dist.methods.counted import CountedRows
from arrowquant_dist.tensor import QuantizedTensor, quantize_layer
from tests.methods.row_blocks import check_row_blocks

_SPEC = QuantSpec("int8", group_size=0, method="counted", step=0.5, row_exponent=0.15, rate=0.1155)
_ROWS, _COLUMNS = 700, 48
_COUNTS = np.random.default_rng(4).poisson(4000.0 / np.arange(1.0, _ROWS + 1)).astype(np.float32)


def values() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((_ROWS, _COLUMNS)).astype(np.float32)


def sensitivity() -> np.ndarray:
    """Of gradients that lie mostly along a few directions."""
    generator = np.random.default_rng(5)
    gradients = generator.standard_normal((4000, _COLUMNS)) * np.geomspace(1.0, 0.1, _COLUMNS)
    turned = gradients @ np.linalg.qr(generator.standard_normal((_COLUMNS, _COLUMNS)))[0]
    return np.asarray(turned.T @ turned / len(turned), np.float32)


def quantized(
    spec: QuantSpec = _SPEC, weight: np.ndarray | None = None, **parts: np.ndarray
) -> QuantizedTensor:
    raw = (values() if weight is None else weight).reshape(-1).view(np.uint8)
    return quantize_layer(raw, (_ROWS, _COLUMNS), "float32", spec, {"counts": _COUNTS, **parts})


def errors(found: QuantizedTensor) -> np.ndarray:
    codes = found.codes.view(np.int8).reshape(_ROWS, _COLUMNS).astype(np.float64)
    return values() - codes * found.scales.astype(np.float64)[:, None]


def plainly_rounded(g: np.ndarray, scales: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Codes, value by value, in float64."""
    g = g.astype(np.float64)
    order = np.argsort(g.diagonal(), kind="stable")
    damped = (g + 0.1 * g.diagonal().mean() * np.eye(_COLUMNS))[np.ix_(order, order)]
    root = np.linalg.cholesky(damped)
    lower, pivots = root / root.diagonal(), root.diagonal() ** 2
    codes = np.zeros((_ROWS, _COLUMNS))
    weights = values().astype(np.float64)
    for row in range(_ROWS):
        left = weights[row, order]
        for at in range(_COLUMNS - 1, -1, -1):
            wanted = left[at] + left[at + 1 :] @ lower[at + 1 :, at]
            shift = min(min(1.02 * _SPEC.rate * steps[row], 0.5) * pivots.mean() / pivots[at], 0.5)
            size = np.rint(max(abs(wanted / scales[row]) - shift, 0.0))
            codes[row, order[at]] = min(size, 127) * np.sign(wanted)
            left[at] -= codes[row, order[at]] * scales[row]
    return codes


def test_codes_are_those_of_the_formula() -> None:
    found = quantized(sensitivity=sensitivity())
    steps = CountedRows.of(_COUNTS).steps(_SPEC, 0, _ROWS)
    expected = plainly_rounded(sensitivity(), found.scales.astype(np.float64), steps)
    differ = found.codes.view(np.int8).reshape(_ROWS, _COLUMNS) != expected
    assert differ.mean() < 1e-3  # where float32 and float64 lie on two sides of a boundary


def test_errors_of_a_row_do_less_by_it_and_are_larger() -> None:
    g = sensitivity().astype(np.float64)
    plain, found = errors(quantized()), errors(quantized(sensitivity=sensitivity()))
    assert np.einsum("ri,ij,rj", found, g, found) < 0.7 * np.einsum("ri,ij,rj", plain, g, plain)
    assert (found**2).sum() > (plain**2).sum()


def test_the_errors_that_are_reported_are_of_the_weights() -> None:
    found = quantized(sensitivity=sensitivity())
    assert found.errors is not None
    assert found.errors.sum_e2 == pytest.approx((errors(found) ** 2).sum(), rel=1e-5)


@pytest.mark.parametrize("cut", [1, 300, 699])
def test_a_row_is_the_same_in_any_row_block(cut: int) -> None:
    side = CountedRows.of(_COUNTS).with_sensitivity(sensitivity(), "embed.weight")
    check_row_blocks(quantized(sensitivity=sensitivity()), values(), _SPEC, side, cut)


def test_one_that_says_nothing_leaves_each_value_to_itself() -> None:
    """Of an embedding on which no result depends."""
    found = quantized(replace(_SPEC, rate=0.0), sensitivity=np.zeros((_COLUMNS, _COLUMNS), np.float32))
    assert np.abs(errors(found) / found.scales.astype(np.float64)[:, None]).max() <= 0.5 + 1e-6


@pytest.mark.parametrize(
    ("changed", "message"),
    [(np.nan, "holds NaN or inf"), (-1e6, "is not positive definite")],
)
def test_what_is_no_sum_of_squares_is_refused_with_the_layers_name(changed: float, message: str) -> None:
    g = sensitivity()
    g[3, 3] = changed
    with pytest.raises(InvalidCheckpoint, match=f"its sensitivity {message}") as caught:
        CountedRows.of(_COUNTS).with_sensitivity(g, "embed.weight")
    assert "embed.weight" in str(caught.value)


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, _ROWS - 1])
def test_values_that_are_no_numbers_are_refused_by_their_place(bad: float, row: int) -> None:
    weight = values()
    weight[row, 5] = bad
    with pytest.raises(UnquantizableWeights, match=rf"at index \[{row}, 5\]"):
        quantized(weight=weight, sensitivity=sensitivity())
    kept = quantized(replace(_SPEC, keep_non_finite=True), weight, sensitivity=sensitivity())
    assert kept.quant_type == "none"


def test_that_of_another_layer_is_refused() -> None:
    with pytest.raises(InvalidConfig, match=r"sensitivity is .*; pass float32 of \[48, 48\]"):
        quantized(sensitivity=sensitivity()[1:, 1:])
