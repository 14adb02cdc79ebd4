from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest
import torch

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.methods import Given, TensorScale
from arrowquant_dist.methods.per_tensor import TensorSpan
from arrowquant_dist.tensor import QuantizedTensor, quantize_values
from arrowquant_dist.tensor.source import kernel_bits, read_only

_SPECS = [
    QuantSpec(quant_type, per_channel=False, group_size=0, symmetric=symmetric, method=method)
    for quant_type in ("int8", "int4", "int2")
    for symmetric in (True, False)
    for method in ("rtn", "mse")
] + [
    QuantSpec(t, per_channel=False, group_size=0, symmetric=False, method=m, integer_zero_points=True)
    for t in ("int8", "int2")
    for m in ("rtn", "mse")
]


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    values: np.ndarray = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return values


def _quantized(weight: torch.Tensor, spec: QuantSpec, scale: TensorScale | None = None) -> QuantizedTensor:
    dtype = str(weight.dtype).removeprefix("torch.")
    return quantize_values(_bytes(weight), tuple(weight.shape), dtype, spec, given=Given(scale))


def _scale(blocks: list[torch.Tensor], spec: QuantSpec) -> TensorScale:
    span = TensorSpan(spec)
    for block in blocks:
        span.add(read_only(kernel_bits(_bytes(block), str(block.dtype).removeprefix("torch."))))
    return span.scale()


def _weights(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    weight = torch.randn(23, 30, generator=torch.Generator().manual_seed(12)) * 0.05
    weight[20:] *= 3  # so that the blocks' own scales differ
    return weight.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("spec", _SPECS)
def test_blocks_with_the_layer_s_scale_are_the_layer(spec: QuantSpec, dtype: torch.dtype) -> None:
    weight = _weights(dtype)
    blocks = [weight[a:b] for a, b in pairwise([0, 2, 3, 23])]
    whole = _quantized(weight, spec)
    scale = _scale(blocks, spec)
    parts = [_quantized(block, spec, scale) for block in blocks]
    for part in parts:
        np.testing.assert_array_equal(part.scales, whole.scales)
        np.testing.assert_array_equal(part.zero_points, whole.zero_points)
    np.testing.assert_array_equal(np.concatenate([part.codes for part in parts]), whole.codes)


@pytest.mark.parametrize("spec", _SPECS)
def test_the_order_of_the_blocks_does_not_matter(spec: QuantSpec) -> None:
    blocks = [_weights()[start : start + 9] for start in (0, 9, 18)]
    assert len({_scale(list(order), spec) for order in permutations(blocks)}) == 1


@pytest.mark.parametrize("spec", [spec for spec in _SPECS if spec.method == "mse"])
def test_mse_has_no_more_error_than_rtn(spec: QuantSpec) -> None:
    rtn = QuantSpec(**{**spec.to_dict(), "method": "rtn"})
    normal = _weights()
    for weight in (
        normal,
        normal.abs() + 0.01,
        normal - 3,
        torch.where(normal > 0, 1.0, -0.5),
        normal * 1e-20,
    ):
        found, plain = (_quantized(weight, s).metrics["mse"] for s in (spec, rtn))
        top = float(weight.abs().max())
        assert found <= plain * 1.001 + (top * 2.0**-9) ** 2


def test_mse_is_far_better_at_2_bits() -> None:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(13))
    spec = QuantSpec("int2", per_channel=False, group_size=0, symmetric=False, method="mse")
    rtn = QuantSpec(**{**spec.to_dict(), "method": "rtn"})
    assert _quantized(weight, spec).metrics["mse"] < 0.5 * _quantized(weight, rtn).metrics["mse"]


@pytest.mark.parametrize("spec", _SPECS)
@pytest.mark.parametrize("value", [0.0, 0.3, -7.0, 1e-45, 3e38])
def test_constant_tensors_decode_to_float_rounding(spec: QuantSpec, value: float) -> None:
    weight = torch.full((3, 5), value)
    decoded = _quantized(weight, spec).values()
    np.testing.assert_allclose(decoded, weight.numpy(), rtol=3e-7, atol=2e-45)


@pytest.mark.parametrize("spec", _SPECS)
def test_values_that_bfloat16_cannot_tell_apart_are_still_told_apart(spec: QuantSpec) -> None:
    """mse looks at a histogram of bfloat16 numbers, where all of these are one."""
    weight = torch.tensor([[1.0, 1.0001, 1.0002, 1.0003]])
    q = _quantized(weight, spec)
    assert np.isfinite(q.values()).all()
    if not spec.symmetric and not spec.integer_zero_points:
        assert len(set(q.values().ravel().tolist())) == 4


@pytest.mark.parametrize("spec", _SPECS)
@pytest.mark.parametrize("top", [1e-45, 1e-38, 1e-31, 1e36, 3.4028234663852886e38])
def test_extremes_stay_finite(spec: QuantSpec, top: float) -> None:
    weight = torch.tensor([[top, -top, 0.0], [top / 2, -top / 3, top / 7]])
    q = _quantized(weight, spec)
    assert np.isfinite(q.scales).all()
    assert (q.scales != 0.0).all()
    assert np.isfinite(q.values()).all()


@pytest.mark.parametrize("spec", _SPECS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_block_with_nan_or_inf_does_not_spoil_the_others_scale(spec: QuantSpec, value: float) -> None:
    """With `non_finite: keep` such a block is kept, and the layer's other blocks are quantized."""
    good = _weights()
    bad = torch.full((2, 30), 9.0)
    bad[1, 1] = value
    assert _scale([bad, good], spec) == _scale([good], spec)
