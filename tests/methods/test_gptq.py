"""gptq gives the codes of the paper's algorithm (tests/methods/plain_gptq.py), and some things must not change them."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.errors import InvalidCheckpoint, InvalidConfig, UnquantizableWeights
from arrowquant_dist.methods import Given, method_of
from arrowquant_dist.tensor import QuantizedTensor, quantize_layer
from tests.conftest import CHECKOUT
from tests.methods import plain_gptq
from tests.methods.statistics_made import Parts, statistics

ROWS, COLUMNS = 300, 200


def weights(rows: int = ROWS, columns: int = COLUMNS, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def quantized(
    weight: np.ndarray, spec: QuantSpec, parts: Parts, dtype: str = "float32", layer: str = "layer"
) -> QuantizedTensor:
    raw = np.ascontiguousarray(weight).reshape(-1).view(np.uint8)
    return quantize_layer(raw, weight.shape, dtype, spec, parts, layer)


def memory_of(weight: np.ndarray, parts: Parts) -> tuple[int, int]:
    """What the plan counts for a layer [rows, columns], and what it takes at most beside what comes out."""
    spec = spec_of()
    quantized(weight, spec, parts)  # compiled, and numpy's own things are there
    side_input = method_of(spec).side_input
    assert side_input is not None
    bound = side_input.work_nbytes(weight.shape, 1, len(weight), parts)
    tracemalloc.start()
    found = quantized(weight, spec, parts)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return bound, peak - found.codes.nbytes - 2 * found.scales.nbytes


def spec_of(quant_type: str = "int4", group_size: int = 64, **settings: Any) -> QuantSpec:
    spec = QuantSpec(quant_type, per_channel=False, group_size=group_size, symmetric=False, method="gptq")
    return replace(spec, **settings)


def by_column(
    found: QuantizedTensor, spec: QuantSpec, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """float64 scales and zero points [rows, groups]."""
    rows = shape[0]
    scales = np.broadcast_to(
        found.scales.reshape(-1, 1) if found.scales.size == 1 else found.scales.reshape(rows, -1),
        (rows, max(1, found.scales.size // rows)),
    )
    if not found.zero_points.size:
        return scales.astype(np.float64), np.zeros(scales.shape)
    return scales.astype(np.float64), np.broadcast_to(
        found.zero_points.reshape(-1, scales.shape[1]), scales.shape
    ).astype(np.float64)


def decoded(found: QuantizedTensor) -> np.ndarray:
    return np.asarray(found.dequantize("float32").numpy(), np.float64)


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("kind", ["symmetric", "real", "whole"])
@pytest.mark.parametrize("group_size", [None, 64, 0])
@pytest.mark.parametrize("quant_type", ["int8", "int4", "int3", "int2"])
def test_codes_are_those_of_the_paper_s_algorithm(
    quant_type: str, group_size: int | None, kind: str, *, corrected: bool
) -> None:
    """But for ties and what follows from them in their rows, for float32 stands against float64."""
    weight, parts = weights(), statistics(ROWS, COLUMNS, corrected=corrected)
    spec = spec_of(
        quant_type,
        group_size or 0,
        per_channel=group_size is None,
        symmetric=kind == "symmetric",
        integer_zero_points=kind == "whole",
    )
    found = quantized(weight, spec, parts)
    damp, target = (0.1, _target(weight, parts)) if corrected else (0.01, weight)
    scales, zero_points = by_column(found, spec, weight.shape)
    group = spec.stored_group_size or COLUMNS
    limits = (-(1 << (spec.bits - 1)), (1 << (spec.bits - 1)) - 1)
    codes = plain_gptq.codes_of(target, parts["hessian"], scales, zero_points, group, limits, damp)
    wide = [np.repeat(numbers, group, axis=1)[:, :COLUMNS] for numbers in (scales, zero_points)]
    expected, got = (codes - wide[1]) * wide[0], decoded(found)
    is_other = np.abs(expected - got) > 0.01 * np.abs(wide[0])
    assert is_other.any(axis=1).mean() <= 0.02
    hessian = parts["hessian"].astype(np.float64)
    error, plain = (plain_gptq.output_error(target - these, hessian) for these in (got, expected))
    assert error < 1.002 * plain
    assert found.errors is not None
    assert found.errors.sum_e2 == pytest.approx(((weight - got) ** 2).sum(), rel=1e-5)


SPECS = st.builds(
    spec_of,
    st.sampled_from(["int8", "int4", "int3", "int2"]),
    st.sampled_from([0, 16, 100]),
    symmetric=st.booleans(),
)


def beside_mse(weight: np.ndarray, spec: QuantSpec, parts: Parts) -> tuple[QuantizedTensor, QuantizedTensor]:
    return quantized(weight, spec, parts), quantized(weight, replace(spec, method="mse"), {})


@given(rows=st.integers(1, 20), columns=st.integers(2, 150), seed=st.integers(0, 1 << 30), spec=SPECS)
@settings(max_examples=30)
def test_scales_and_zero_points_are_mse_s(rows: int, columns: int, seed: int, spec: QuantSpec) -> None:
    found, plain = beside_mse(weights(rows, columns, seed), spec, statistics(rows, columns, seed))
    np.testing.assert_array_equal(found.scales, plain.scales)
    np.testing.assert_array_equal(found.zero_points, plain.zero_points)


@given(rows=st.integers(16, 30), columns=st.integers(16, 150), seed=st.integers(0, 1 << 30), spec=SPECS)
@settings(max_examples=30)
def test_the_output_s_error_is_no_larger_than_mse_s(
    rows: int, columns: int, seed: int, spec: QuantSpec
) -> None:
    """Of a matrix. The error of a row of its own, or of a few short ones, may be three times as large, because the
    codes of the first columns are chosen without a look at those of the last."""
    weight, parts = weights(rows, columns, seed), statistics(rows, columns, seed)
    hessian = parts["hessian"].astype(np.float64)
    damped = hessian + 0.01 * hessian.diagonal().mean() * np.eye(columns)
    ours, theirs = (
        plain_gptq.output_error(weight - decoded(these), damped) for these in beside_mse(weight, spec, parts)
    )
    assert ours <= theirs + 1e-9


@given(
    edges=st.lists(st.integers(1, 699), max_size=4),
    columns=st.sampled_from([129, 40]),
    corrected=st.booleans(),
    group_size=st.sampled_from([0, 48]),
)
@settings(max_examples=15)
def test_row_blocks_do_not_change_a_code(
    edges: list[int], columns: int, group_size: int, *, corrected: bool
) -> None:
    weight, parts = weights(700, columns), statistics(700, columns, corrected=corrected)
    spec = spec_of("int3", group_size)
    whole = quantized(weight, spec, parts)
    method, side = method_of(spec), _prepared(spec, parts, weight.shape)
    scale = None
    if group_size == 0:
        span = method.span(spec)  # type: ignore[attr-defined]
        span.add(weight.view("<i4"))
        scale = span.scale()
    codes, scales = [], []
    for start, stop in zip(sorted({0, *edges}), [*sorted({*edges}), 700], strict=True):
        bits = weight[start:stop].view("<i4")
        bits.flags.writeable = False
        packed = np.empty((stop - start, -(-columns * 3 // 8)), np.uint8)
        found = method.quantize(bits, spec, packed, Given(scale, side, start))
        assert found is not None
        codes.append(packed.reshape(-1))
        scales.append(found.scales)
    np.testing.assert_array_equal(np.concatenate(codes), whole.codes)
    if group_size:
        np.testing.assert_array_equal(np.concatenate(scales), whole.scales)


_PRINTED = """
from tests.methods.test_gptq import digest
print(digest())
"""


def digest() -> str:
    """Of statistics that no BLAS has a part in."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((60, 45)) * np.geomspace(1.0, 0.1, 45)
    hessian = np.einsum("ti,tj->ij", inputs, inputs, optimize=False).astype(np.float32)
    parts = {"hessian": hessian, "cross": hessian * np.float32(1.1), "residual": weights(5, 45, 1)}
    found = quantized(weights(5, 45), spec_of("int4", 16), parts)
    return hashlib.sha256(found.codes.tobytes() + found.scales.tobytes()).hexdigest()


@pytest.mark.parametrize(
    "setting",
    [
        {"NUMBA_DISABLE_JIT": "1"},
        pytest.param(
            {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma"}, marks=pytest.mark.slow
        ),
        pytest.param({"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}, marks=pytest.mark.slow),
    ],
    ids=["without machine code", "narrower vectors", "the plainest"],
)
def test_the_kind_of_cpu_does_not_change_a_code(setting: dict[str, str], tmp_path: Path) -> None:
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), **setting}
    command = [sys.executable, "-c", _PRINTED]
    found = subprocess.run(command, env=env, cwd=CHECKOUT, check=True, capture_output=True, text=True)
    assert found.stdout.strip() == digest()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_a_source_of_another_dtype_is_quantized_by_its_values(dtype: str) -> None:
    values, parts, spec = weights(), statistics(ROWS, COLUMNS), spec_of()
    if dtype == "bfloat16":
        bits = (values.view("<u4") >> 16).astype("<u2")
        given_, values = bits, (bits.astype("<u4") << 16).view("<f4")
    else:
        given_ = values.astype(dtype)
        values = given_.astype(np.float32)
    found, expected = quantized(given_, spec, parts, dtype), quantized(values, spec, parts)
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_array_equal(found.scales, expected.scales)


def test_scales_of_bfloat16_are_what_codes_are_chosen_for() -> None:
    weight, parts = weights(), statistics(ROWS, COLUMNS)
    spec = spec_of("int8", 32, scale_dtype="bfloat16")
    found = quantized(weight, spec, parts)
    assert not (found.scales.view("<u4") & 0xFFFF).any()
    scales, zero_points = by_column(found, spec, weight.shape)
    codes = plain_gptq.codes_of(weight, parts["hessian"], scales, zero_points, 32, (-128, 127), 0.01)
    expected = (codes - np.repeat(zero_points, 32, 1)[:, :COLUMNS]) * np.repeat(scales, 32, 1)[:, :COLUMNS]
    assert (np.abs(expected - decoded(found)) > 1e-4).any(axis=1).mean() <= 0.02


def test_inputs_that_never_were_leave_their_columns_at_the_nearest_codes() -> None:
    weight, parts = weights(), statistics(ROWS, COLUMNS, corrected=True)
    dead = [3, 150, 199]
    for part in ("hessian", "cross"):
        parts[part][dead], parts[part][:, dead] = 0.0, 0.0
    parts["residual"][:, dead] = 0.0
    got = decoded(
        quantized(weight, spec_of("int8", 1), parts)
    )  # a scale for each value: the nearest is itself
    np.testing.assert_allclose(got[:, dead], weight[:, dead], rtol=1e-6)


def test_without_any_input_it_is_mse() -> None:
    weight, spec = weights(), spec_of("int3")
    found = quantized(weight, spec, {"hessian": np.zeros((COLUMNS, COLUMNS), np.float32)})
    expected = quantized(weight, replace(spec, method="mse"), {})
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_array_equal(found.scales, expected.scales)


def test_experts_in_one_tensor_have_a_hessian_each() -> None:
    """The last one saw no token."""
    parts = [statistics(30, 40, seed, corrected=True) for seed in range(3)]
    parts[2] = {part: np.zeros_like(found) for part, found in parts[2].items()}
    stacked = {part: np.stack([one[part] for one in parts]) for part in parts[0]}
    weight, spec = weights(90, 40).reshape(3, 30, 40), spec_of("int4", 16, row_dims=2)
    found = quantized(weight, spec, stacked)
    each = [quantized(one, replace(spec, row_dims=1), own) for one, own in zip(weight, parts, strict=True)]
    np.testing.assert_array_equal(found.codes, np.concatenate([one.codes for one in each]))
    np.testing.assert_array_equal(found.scales, np.concatenate([one.scales for one in each]))


def test_too_inexact_a_hessian_is_damped_more() -> None:
    """Of one token, and off by more than a hundredth of its mean: with a tenth of it all is well."""
    parts = statistics(ROWS, COLUMNS)
    values, vectors = np.linalg.eigh(parts["hessian"].astype(np.float64))
    values[0] = -0.05 * values.mean()
    broken = ((vectors * values) @ vectors.T).astype(np.float32)
    broken = (broken + broken.T) / 2
    weight, spec = weights(), spec_of()
    found = quantized(weight, spec, {"hessian": broken})
    scales, zero_points = by_column(found, spec, weight.shape)
    codes = plain_gptq.codes_of(weight, broken, scales, zero_points, 64, (-8, 7), 0.1)
    expected = (codes - np.repeat(zero_points, 64, 1)[:, :COLUMNS]) * np.repeat(scales, 64, 1)[:, :COLUMNS]
    assert (np.abs(expected - decoded(found)) > 1e-3).any(axis=1).mean() <= 0.02


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda h: h * np.nan, "its hessian holds NaN or inf"),
        (lambda h: -h, "its hessian has a negative number on its diagonal"),
        (
            lambda h: h - 1000.0 * h.diagonal().mean() * (1 - np.eye(len(h))),
            "not positive definite, even with 10 of",
        ),
    ],
)
def test_what_is_no_hessian_is_an_error_that_names_the_layer(broken: object, message: str) -> None:
    hessian = broken(statistics(ROWS, COLUMNS)["hessian"]).astype(np.float32)  # type: ignore[operator]
    with pytest.raises(InvalidCheckpoint, match=message) as raised:
        quantized(weights(), spec_of(), {"hessian": hessian}, layer="a.weight")
    assert raised.value.layer == "a.weight"


def test_a_residual_that_is_not_finite_is_an_error_that_names_the_layer() -> None:
    residual = np.zeros((ROWS, COLUMNS), np.float32)
    residual[-1, 3] = np.nan
    parts = {**statistics(ROWS, COLUMNS), "residual": residual}
    with pytest.raises(InvalidCheckpoint, match="its residual holds NaN or inf") as raised:
        quantized(weights(), spec_of(), parts, layer="a.weight")
    assert raised.value.layer == "a.weight"


@pytest.mark.parametrize(
    "settings", [{"group_size": 64}, {"group_size": 0}, {"step": 0.5, "symmetric": True}]
)
@pytest.mark.parametrize("rows", [slice(None), slice(7, 8)], ids=["all rows", "one row"])
def test_a_target_beyond_float32_is_an_error_that_names_the_layer(
    settings: dict[str, Any], rows: slice
) -> None:
    parts = statistics(ROWS, COLUMNS)
    parts["residual"] = np.zeros((ROWS, COLUMNS), np.float32)
    parts["residual"][rows] = 3e38
    parts["hessian"] *= np.float32(1e-6)
    with pytest.raises(UnquantizableWeights, match=r"its target, .*, is beyond float32") as raised:
        quantized(weights(), spec_of(**settings), parts, layer="a.weight")
    assert raised.value.layer == "a.weight"


def test_statistics_of_another_shape_or_none_are_refused() -> None:
    with pytest.raises(InvalidConfig, match=r"hessian is missing; pass float32 of \[200, 200\]"):
        quantized(weights(), spec_of(), {})
    parts = statistics(ROWS, COLUMNS)
    parts["cross"] = parts["hessian"][:5]
    with pytest.raises(InvalidConfig, match="cross is"):
        quantized(weights(), spec_of(), parts)


@pytest.mark.parametrize("corrected", [False, True])
def test_it_takes_no_more_memory_than_the_plan_counts(*, corrected: bool) -> None:
    """And no less than half of it: one matrix, or two, and what is made of a tile."""
    rows, columns = 600, 1000
    weight = weights(rows, columns)
    hessian = np.diag(np.linspace(1.0, 2.0, columns, dtype=np.float32))
    parts = {"hessian": hessian}
    if corrected:
        parts |= {"cross": hessian, "residual": weights(rows, columns)}
    bound, taken = memory_of(weight, parts)
    assert bound / 2 < taken < bound


@pytest.mark.parametrize("group_size", [64, 0])
def test_a_value_that_is_not_finite_is_found(group_size: int) -> None:
    weight = weights()
    weight[7, 9] = np.inf
    with pytest.raises(UnquantizableWeights, match="inf"):
        quantized(weight, spec_of(group_size=group_size), statistics(ROWS, COLUMNS))
    kept = quantized(weight, spec_of(group_size=group_size, keep_non_finite=True), statistics(ROWS, COLUMNS))
    assert kept.quant_type == "none"


def _prepared(spec: QuantSpec, parts: Parts, shape: tuple[int, ...]) -> object:
    class Read:
        def __init__(self) -> None:
            self.parts = parts

        def __call__(self, part: str, start: int, stop: int) -> np.ndarray:
            return parts[part].reshape(-1)[start:stop].copy()

    side_input = method_of(spec).side_input
    assert side_input is not None
    return side_input.prepare("layer", shape, spec.row_dims, Read())


def _target(weight: np.ndarray, parts: Parts) -> np.ndarray:
    return plain_gptq.target(weight, parts["hessian"], parts["cross"], parts["residual"], damp=0.1)
