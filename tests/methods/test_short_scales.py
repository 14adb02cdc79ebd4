"""`scale_dtype: bfloat16`: scales that a reader in a bfloat16 model keeps exactly, and codes that fit them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from arrowquant_dist import QuantizationConfig, quantize_tensor
from arrowquant_dist.config import QuantSpec
from arrowquant_dist.errors import UnquantizableWeights
from arrowquant_dist.methods.short_scales import short_scales
from arrowquant_dist.tensor import QuantizedTensor, quantize_values

_ZEROS: dict[str, dict[str, object]] = {
    "symmetric": {},
    "real": {"symmetric": False},
    "whole": {"symmetric": False, "integer_zero_points": True},
}
_SCOPES: dict[str, dict[str, object]] = {
    "channel": {"per_channel": True},
    "group": {"per_channel": False, "group_size": 64},
    "tensor": {"per_channel": False, "group_size": 0},
}
_CONFIGS = {
    f"{quant_type} {scope} {method} {zeros}": QuantizationConfig.from_dict(
        {"quant_type": quant_type, "method": method, **_SCOPES[scope], **_ZEROS[zeros]}
    )
    for quant_type in ("int8", "int4", "int3", "int2")
    for scope in _SCOPES
    for method in ("rtn", "mse")
    for zeros in _ZEROS
}


def _weight(rows: int = 24, columns: int = 160) -> torch.Tensor:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(4)) * 0.02
    weight[1] = 0.1  # constant, and no bfloat16
    weight[2] = 0.0
    weight[3] += 5.0  # far from zero
    return weight


def _as_bfloat16(scales: np.ndarray) -> np.ndarray:
    rounded: np.ndarray = torch.from_numpy(scales).to(torch.bfloat16).float().numpy()
    return rounded


def _by_value(q: QuantizedTensor, numbers: np.ndarray) -> np.ndarray:
    """Scales or zero points of each value, [rows, columns]."""
    rows, columns = q.matrix_shape
    if q.quant_axis < 0:
        return np.full((rows, columns), numbers[0])
    return np.repeat(numbers.reshape(rows, -1), q.group_size or columns, 1)[:, :columns]


def _decoded(q: QuantizedTensor, bits: int) -> np.ndarray:
    """x̂ = (q - zero point) · scale, written out in float32."""
    rows, columns = q.matrix_shape
    stored = q.codes.reshape(rows, -1)
    if bits == 8:
        codes = stored.view(np.int8).astype(np.float32)
    else:
        stream = np.unpackbits(stored, axis=1, bitorder="little")[:, : columns * bits]
        unsigned = (stream.reshape(rows, columns, bits) * (1 << np.arange(bits))).sum(2)
        codes = unsigned.astype(np.float32) - np.float32(1 << (bits - 1))
    zero_points = _by_value(q, q.zero_points) if q.zero_points.size else np.float32(0)
    return np.asarray((codes - zero_points) * _by_value(q, q.scales))


@pytest.mark.parametrize("config", _CONFIGS.values(), ids=_CONFIGS)
def test_scales_are_bfloat16_numbers_and_codes_are_chosen_for_them(config: QuantizationConfig) -> None:
    weight, bits = _weight(), config.spec().bits
    q = quantize_tensor(weight, config.replace(scale_dtype="bfloat16"))
    assert q.errors is not None
    assert np.array_equal(_as_bfloat16(q.scales), q.scales)
    decoded = _decoded(q, bits)
    np.testing.assert_array_equal(q.dequantize(torch.float32).numpy(), decoded)
    if config.integer_zero_points:
        assert np.array_equal(np.rint(q.zero_points), q.zero_points)
        assert q.zero_points.min() >= -(1 << (bits - 1))
        assert q.zero_points.max() <= (1 << (bits - 1)) - 1
    errors = weight.numpy().astype(np.float64) - decoded
    assert q.errors.sum_e2 == pytest.approx(float((errors**2).sum()), rel=1e-4)
    if config.method == "rtn":
        steps = 1.01 if config.integer_zero_points else 0.51  # a rounded zero point clips half a step
        assert (np.abs(errors) <= steps * np.abs(_by_value(q, q.scales)) + 1e-6).all()


@pytest.mark.parametrize("config", _CONFIGS.values(), ids=_CONFIGS)
def test_they_cost_little(config: QuantizationConfig) -> None:
    weight = _weight()[4:]
    plain, short = (
        quantize_tensor(weight, config),
        quantize_tensor(weight, config.replace(scale_dtype="bfloat16")),
    )
    assert plain.errors is not None
    assert short.errors is not None
    assert short.errors.sum_e2 <= 1.1 * plain.errors.sum_e2  # a step is larger by 1/128 at most


def test_each_code_is_the_nearest_of_its_scale() -> None:
    weight = _weight()
    q = quantize_tensor(weight, QuantizationConfig("int8", scale_dtype="bfloat16"))
    scales = q.scales[:, None].astype(np.float64)
    nearest = np.clip(np.rint(weight.numpy().astype(np.float64) / scales), -128, 127)
    assert np.abs(q.codes.view(np.int8).reshape(24, 160) - nearest).max() <= 1
    assert (q.codes.view(np.int8).reshape(24, 160) == nearest).mean() > 0.999
    plain = quantize_tensor(weight, QuantizationConfig("int8"))
    assert not np.array_equal(plain.codes, q.codes)


def test_row_blocks_add_up_to_the_layer_and_leave_out_nothing() -> None:
    values = _weight().numpy()
    for spec in (
        QuantSpec("int8"),
        QuantSpec("int4", per_channel=False, group_size=64, symmetric=False, method="mse"),
    ):
        short = replace(spec, scale_dtype="bfloat16")
        whole = quantize_values(values.reshape(-1).view(np.uint8), (24, 160), "float32", short)
        parts = [
            quantize_values(values[a:b].reshape(-1).view(np.uint8), (b - a, 160), "float32", short)
            for a, b in ((0, 1), (1, 10), (10, 24))
        ]
        for name in ("codes", "scales", "zero_points"):
            assert np.array_equal(
                np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name)
            )


def test_what_is_a_bfloat16_number_stays_and_the_rest_moves_away_from_zero() -> None:
    scales = np.array([0.5, 1.0, 0.1, -0.1, 1 + 2**-20, 3e38, -3.4028235e38, 1e-42, 0.0], np.float32)
    short = short_scales(scales)
    assert np.array_equal(_as_bfloat16(short), short)
    assert short[:2].tolist() == [0.5, 1.0]
    assert short[2] == np.float32(0.10009765625)
    assert short[3] == -short[2]
    assert short[4] == np.float32(1 + 2**-7)
    assert np.isfinite(short).all()
    assert (np.abs(short[5:7]) <= np.abs(scales[5:7])).all()  # a larger one might decode to inf
    assert short[7] >= scales[7] > 0
    assert short[8] == 0.0


@pytest.mark.parametrize("method", ["rtn", "mse"])
@pytest.mark.parametrize("zeros", _ZEROS)
def test_the_largest_values_decode_to_finite_ones(method: str, zeros: str) -> None:
    weight = torch.tensor([[3.4028234e38, -3.4028234e38, 1.0, 0.0], [3e38, 2.9e38, 2.8e38, 2.9e38]])
    config = replace(_CONFIGS[f"int8 channel {method} {zeros}"], scale_dtype="bfloat16")
    assert quantize_tensor(weight, config).dequantize().isfinite().all()


def _quantized(values: np.ndarray, spec: QuantSpec) -> QuantizedTensor:
    dtype = str(values.dtype)
    return quantize_values(values.reshape(-1).view(np.uint8), values.shape, dtype, spec, layer="m.w")


@pytest.mark.parametrize("config", _CONFIGS.values(), ids=_CONFIGS)
def test_scales_are_float16_numbers_where_an_export_asks_for_them(config: QuantizationConfig) -> None:
    weight = _weight().numpy()
    weight[5] *= 1e-3  # whose scales have few digits in float16
    q = _quantized(weight, replace(config.spec(), scale_dtype="float16"))
    assert np.array_equal(q.scales.astype(np.float16).astype(np.float32), q.scales)
    decoded = _decoded(q, config.spec().bits)
    np.testing.assert_array_equal(q.dequantize(torch.float32).numpy(), decoded)
    plain = _quantized(weight, config.spec())
    errors, plainly = weight - decoded, weight - plain.dequantize().numpy()
    larger = _by_value(q, q.scales).max() / _by_value(plain, plain.scales).max()
    assert larger <= 1 + 2**-9
    assert (errors[6:] ** 2).sum() <= 1.1 * (plainly[6:] ** 2).sum()
    if config.method == "rtn" and not config.integer_zero_points:
        assert (np.abs(errors) <= 0.51 * np.abs(_by_value(q, q.scales)) + 1e-6).all()


def test_a_float16_scale_is_the_next_away_from_zero_and_what_it_has_not_stays() -> None:
    scales = np.array([0.5, 0.1, -0.1, 3e-8, 4e-8, 65504, 0.0, 1e-8, 65510, -7e4, 1e-42], np.float32)
    short = short_scales(scales, "float16")
    assert short[:7].tolist() == [0.5, 0.10003662109375, -0.10003662109375, 2**-24, 2**-24, 65504, 0.0]
    assert np.array_equal(short[7:], scales[7:])


@pytest.mark.parametrize("factor", [1e-9, 1e9])
def test_a_scale_far_from_all_of_float16_s_is_an_error_that_names_the_layer(factor: float) -> None:
    weight = _weight().numpy()
    weight[5] *= factor
    with pytest.raises(
        UnquantizableWeights, match=r"'m\.w'.*float16 cannot represent.*mixed_precision_layers"
    ):
        _quantized(weight, QuantSpec("int8", scale_dtype="float16"))


def test_the_smallest_values_of_a_float16_source_are_multiples_of_its_smallest_scale() -> None:
    weight = np.array([[1, -5, 127, 0], [0, 1, 0, -1]], np.int16).astype(np.float16) * np.float16(2**-24)
    q = _quantized(weight, QuantSpec("int8", scale_dtype="float16"))
    assert np.array_equal(q.dequantize(torch.float32).numpy(), weight.astype(np.float32))
