"""gptq of layers stored [in, out]: what the paper's algorithm gives for the transposed layer, with scales of stored
rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig, WeightLoader
from arrowquant_dist.errors import UnquantizableWeights
from tests.methods import plain_gptq
from tests.methods.statistics_made import Parts, save_statistics, statistics
from tests.methods.test_gptq import by_column, decoded, memory_of, quantized, spec_of, weights
from tests.sources import save_checkpoint

INPUTS, OUTPUTS = 90, 300  # more outputs than a tile has


def by_rows(parts: Parts) -> Parts:
    """Statistics of a layer [out, in], as one stored [in, out] has them."""
    turned = {part: found.T if part == "residual" else found for part, found in parts.items()}
    return {f"row_{part}": np.ascontiguousarray(found) for part, found in turned.items()}


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize(
    ("quant_type", "group_size", "kind"),
    [("int8", None, "symmetric"), ("int4", 64, "real"), ("int3", 64, "whole"), ("int2", 0, "real")],
)
def test_codes_are_those_of_the_paper_s_algorithm_along_the_rows(
    quant_type: str, group_size: int | None, kind: str, *, corrected: bool
) -> None:
    weight, parts = weights(INPUTS, OUTPUTS), statistics(OUTPUTS, INPUTS, corrected=corrected)
    spec = spec_of(
        quant_type,
        group_size or 0,
        per_channel=group_size is None,
        symmetric=kind == "symmetric",
        integer_zero_points=kind == "whole",
    )
    found = quantized(weight, spec, by_rows(parts))
    damp, target = 0.01, weight.T
    if corrected:
        damp = 0.1
        target = plain_gptq.target(weight.T, parts["hessian"], parts["cross"], parts["residual"], damp)
    group = spec.stored_group_size or OUTPUTS
    wide = [
        np.repeat(numbers, group, axis=1)[:, :OUTPUTS].T
        for numbers in by_column(found, spec, (INPUTS, OUTPUTS))
    ]
    limits = (-(1 << (spec.bits - 1)), (1 << (spec.bits - 1)) - 1)
    scales, zero_points = wide
    codes = plain_gptq.codes_of(target, parts["hessian"], scales, zero_points, 1, limits, damp)
    expected, got = (codes - zero_points) * scales, decoded(found).T
    is_other = np.abs(expected - got) > 0.01 * np.abs(scales)
    assert is_other.any(axis=1).mean() <= 0.02
    assert found.errors is not None
    assert found.errors.sum_e2 == pytest.approx(((weight.T - got) ** 2).sum(), rel=1e-5)


def test_the_output_s_error_is_half_of_mse_s() -> None:
    weight, parts = weights(INPUTS, OUTPUTS), statistics(OUTPUTS, INPUTS)
    errors = [
        plain_gptq.output_error(decoded(found).T - weight.T, parts["hessian"])
        for found in (
            quantized(weight, spec_of(), by_rows(parts)),
            quantized(weight, spec_of(method="mse"), {}),
        )
    ]
    assert errors[0] < 0.5 * errors[1]


def test_scales_are_mse_s_of_rows_as_they_are_stored() -> None:
    weight, spec = weights(INPUTS, OUTPUTS), spec_of()
    found = quantized(weight, spec, by_rows(statistics(OUTPUTS, INPUTS)))
    plain = quantized(weight, replace(spec, method="mse"), {})
    np.testing.assert_array_equal(found.scales, plain.scales)
    np.testing.assert_array_equal(found.zero_points, plain.zero_points)


def test_row_blocks_never_divide_a_matrix_and_experts_have_one_each(tmp_path: Path) -> None:
    """Blocks of fewer bytes than a matrix: the same codes as of whole layers, and a note of what they take."""
    inputs, outputs = 160, 128
    stacked = np.stack([weights(inputs, outputs, seed) for seed in range(3)])
    parts = [by_rows(statistics(outputs, inputs, seed, corrected=True)) for seed in range(3)]
    parts[1] = {part: np.zeros_like(found) for part, found in parts[1].items()}  # no token came to it
    together = {part: np.stack([of[part] for of in parts]) for part in parts[0]}
    conv = by_rows(statistics(outputs, inputs))
    tensors = {"experts.down": torch.from_numpy(stacked), "conv.weight": torch.from_numpy(stacked[0])}
    source = save_checkpoint(tmp_path / "source", tensors)
    side = save_statistics(tmp_path / "side", {"experts.down": together, "conv.weight": conv})
    config = QuantizationConfig("int4", per_channel=False, group_size=32, method="gptq", hessians=side)
    run = RunConfig(engine="inline", block_bytes=64 << 10, tensor_parallel=2)
    report = ArrowQuantizer(config, run).quantize(source, tmp_path / "out")
    assert any("its rows depend on each other" in note for note in report.notes)
    spec = spec_of("int4", 32, symmetric=True)
    with WeightLoader(tmp_path / "out") as loader:
        found = loader["experts.down"].numpy()
        for expert in range(3):
            alone = decoded(quantized(stacked[expert], spec, parts[expert]))
            np.testing.assert_array_equal(found[expert], alone)
        expected = decoded(quantized(stacked[0], spec, conv))
        np.testing.assert_array_equal(loader["conv.weight"].numpy(), expected)
    mse = decoded(quantized(stacked[1], replace(spec, method="mse"), {}))
    np.testing.assert_array_equal(found[1], mse)


def test_a_square_layer_is_quantized_along_the_axis_that_its_statistics_say() -> None:
    weight, parts = weights(64, 64), statistics(64, 64)
    one, other = (quantized(weight, spec_of(), given) for given in (parts, by_rows(parts)))
    assert not np.array_equal(one.codes, other.codes)


def test_a_value_that_is_not_finite_is_found() -> None:
    weight = weights(INPUTS, OUTPUTS)
    weight[7, 9] = np.nan
    with pytest.raises(UnquantizableWeights, match="NaN"):
        quantized(weight, spec_of(), by_rows(statistics(OUTPUTS, INPUTS)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_a_source_of_another_dtype_is_quantized_by_its_values(dtype: str) -> None:
    torch_dtype = getattr(torch, dtype)
    values = torch.from_numpy(weights(INPUTS, OUTPUTS)).to(torch_dtype)
    parts = by_rows(statistics(OUTPUTS, INPUTS))
    raw = values.contiguous().view(torch.uint8).numpy()
    found = quantized_bytes(raw, dtype, parts)
    expected = quantized(values.float().numpy(), spec_of(), parts)
    np.testing.assert_array_equal(found, expected.codes)


def quantized_bytes(raw: np.ndarray, dtype: str, parts: Parts) -> np.ndarray:
    from arrowquant_dist.tensor import quantize_layer

    found = quantize_layer(raw.reshape(-1), (INPUTS, OUTPUTS), dtype, spec_of(), parts, "layer")
    return np.asarray(found.codes)


@pytest.mark.parametrize("corrected", [False, True])
def test_it_takes_no_more_memory_than_the_plan_counts(*, corrected: bool) -> None:
    inputs, outputs = 500, 1200
    weight = weights(inputs, outputs)
    hessian = np.diag(np.linspace(1.0, 2.0, inputs, dtype=np.float32))
    parts = {"row_hessian": hessian}
    if corrected:
        parts |= {"row_cross": hessian, "row_residual": weights(inputs, outputs)}
    bound, taken = memory_of(weight, parts)
    assert bound / 2 < taken < bound
