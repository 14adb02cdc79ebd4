from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from arrowquant_dist.config import LayerOverride, QuantizationConfig, QuantSpec, half_spec, kept_spec
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.errors import InvalidConfig, UnquantizableWeights
from arrowquant_dist.tensor import QuantizedTensor, quantize_tensor, quantize_values

_FLOATS = ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]
_INT8 = QuantizationConfig()
_INT4 = QuantizationConfig("int4", per_channel=False, group_size=16, symmetric=False)


def _weights(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(11))


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    values: np.ndarray = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return values


def _assert_same(left: QuantizedTensor, right: QuantizedTensor) -> None:
    for name in ("codes", "scales", "zero_points"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
    assert left.shape == right.shape


@pytest.mark.parametrize("dtype", _FLOATS)
def test_torch_weights_of_every_float_dtype_come_back_close(dtype: str) -> None:
    weight = _weights(8, 48).to(getattr(torch, dtype))
    q = quantize_tensor(weight, _INT8)
    assert (q.shape, q.dtype, q.quant_type) == ((8, 48), dtype, "int8")
    back = q.dequantize()
    assert back.dtype == weight.dtype
    error = (back.double() - weight.double()).abs().max(dim=1).values
    one_step = weight.double().abs().max(dim=1).values / 127
    # half a step, then the rounding of the dtype itself
    assert (error <= one_step / 2 + 4.1 * torch.finfo(weight.dtype).eps).all()
    assert q.metrics["cosine"] > 0.999


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_numpy_and_torch_weights_are_quantized_alike(dtype: str) -> None:
    weight = _weights(5, 40).to(getattr(torch, dtype))
    _assert_same(quantize_tensor(weight.numpy(), _INT4), quantize_tensor(weight, _INT4))


def test_float64_and_float8_are_quantized_as_the_float32_they_become() -> None:
    for dtype in ("float64", "float8_e4m3fn", "float8_e5m2"):
        weight = _weights(5, 40).to(getattr(torch, dtype))
        _assert_same(quantize_tensor(weight, _INT4), quantize_tensor(weight.float(), _INT4))


@pytest.mark.parametrize("config", [_INT8, _INT4])
def test_the_memory_s_layout_does_not_matter(config: QuantizationConfig) -> None:
    weight = _weights(12, 50)
    expected = quantize_tensor(weight, config)
    wide = torch.zeros(24, 101)
    wide[::2, 1::2] = weight
    read_only = weight.numpy().copy()
    read_only.flags.writeable = False
    misaligned = np.zeros(weight.nbytes + 1, np.uint8)
    misaligned[1:] = _bytes(weight)
    for same in (
        wide[::2, 1::2],
        weight.t().contiguous().t(),
        wide.numpy()[::2, 1::2],
        np.asfortranarray(weight.numpy()),
        weight.numpy().astype(">f4"),
        read_only,
        misaligned[1:].view(np.float32).reshape(12, 50),
    ):
        _assert_same(quantize_tensor(same, config), expected)


def test_parameters_that_require_gradients_are_quantized() -> None:
    weight = torch.nn.Parameter(_weights(4, 20))
    back = quantize_tensor(weight, _INT8).dequantize()
    assert not back.requires_grad
    assert weight.requires_grad


@pytest.mark.parametrize(
    "config", [_INT8, _INT4, QuantizationConfig("int2", per_channel=False, group_size=0)]
)
def test_the_weight_is_not_touched(config: QuantizationConfig) -> None:
    weight = _weights(9, 33)
    before, address = weight.clone(), weight.data_ptr()
    quantize_tensor(weight, config)
    assert torch.equal(weight, before)
    assert weight.data_ptr() == address


def test_a_contiguous_torch_weight_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    from arrowquant_dist.tensor import quantize

    seen = []
    inside = quantize.quantize_values

    def watched(values: np.ndarray, *args: object, **kwargs: object) -> QuantizedTensor:
        seen.append(values.ctypes.data)
        return inside(values, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(quantize, "quantize_values", watched)
    weight = _weights(16, 32).to(torch.bfloat16)
    quantize_tensor(weight, _INT8)
    assert seen == [weight.data_ptr()]


@pytest.mark.parametrize(
    ("weight", "quant_type"),
    [
        (torch.tensor(3.25), "none"),
        (torch.tensor(1.0, dtype=torch.bfloat16), "none"),
        (_weights(7), "none"),
        (_weights(1, 1, 7), "none"),
        (_weights(7, 1), "none"),
        (_weights(7).double(), "none"),
        (_weights(7).to(torch.bfloat16), "none"),
        (_weights(7).to(torch.float16), "none"),
        (torch.arange(6).reshape(2, 3), "none"),
        (torch.tensor([[True, False]]), "none"),
        (torch.tensor([[200, 3]], dtype=torch.uint8), "none"),
        (torch.empty(0, 5), None),
        (torch.empty(4, 0, dtype=torch.bfloat16), None),
    ],
)
def test_what_can_t_be_quantized_is_kept(weight: torch.Tensor, quant_type: str | None) -> None:
    q = quantize_tensor(weight, QuantizationConfig("int2", per_channel=False))
    assert not q.scales.size
    assert quant_type is None or q.quant_type == quant_type
    back = q.dequantize()
    assert back.dtype == weight.dtype
    assert back.shape == weight.shape
    assert torch.equal(back, weight)
    assert bytes(q.codes) == bytes(_bytes(weight))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "value",
    [65520.0, -1e30, 1e-9, -1e-6, 2.0**-15 * 0.999, 1e-40, float("nan")],
    ids=["beyond", "far beyond", "to 0", "6 bits", "9 bits", "denormal", "NaN"],
)
def test_what_fp16_does_not_hold_keeps_its_block_byte_for_byte(value: float, dtype: str) -> None:
    weight = torch.tensor([[1.0, 0.1], [value, 3.000001]], dtype=getattr(torch, dtype))
    q = quantize_tensor(weight, QuantizationConfig(mixed_precision_layers=["w"]), "w")
    assert q.quant_type == "none"
    assert bytes(q.codes) == bytes(_bytes(weight))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fp16_holds_zeros_what_it_has_exactly_and_what_it_rounds_to_ten_bits(dtype: str) -> None:
    """The least of these is rounded by 2^-25, half a step of fp16's smallest values: 2^-10 of itself."""
    held = [0.0, -0.0, 0.1, 65504.0, 65519.0, 2.0**-24, -3 * 2.0**-24, 2.0**-15, 2.0**-15 * 1.0005]
    weight = torch.tensor([held, [-value for value in held]], dtype=getattr(torch, dtype))
    q = quantize_tensor(weight, QuantizationConfig("fp16"))
    assert (q.quant_type, q.dtype, q.codes.nbytes) == ("fp16", dtype, 36)
    back = q.dequantize()
    assert torch.equal(back, weight.half().to(weight.dtype))
    assert torch.equal(back.signbit(), weight.signbit())
    assert ((back - weight).abs() <= weight.abs() * 2.0**-10).all()
    expected = (weight.double() - weight.half().double()).square().mean().item()
    assert q.metrics["mse"] == pytest.approx(expected, rel=1e-9)


def test_what_is_looked_at_in_pieces_is_held_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    from arrowquant_dist.tensor import quantize

    monkeypatch.setattr(quantize, "_KEPT_CHUNK", 4)
    weight = _weights(3, 7).abs() + 1.0
    held = quantize_tensor(weight, QuantizationConfig("fp16"))
    assert torch.equal(held.dequantize(), weight.half().float())
    expected = (weight.double() - weight.half().double()).square().mean().item()
    assert held.metrics["mse"] == pytest.approx(expected, rel=1e-9)
    weight[2, 6] = 1e-8
    assert quantize_tensor(weight, QuantizationConfig("fp16")).quant_type == "none"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"])
def test_what_has_16_bits_or_fewer_stays_so_where_16_are_asked_for(dtype: str) -> None:
    weight = _weights(4, 8).to(getattr(torch, dtype))
    q = quantize_tensor(weight, QuantizationConfig("fp16"))
    assert (q.quant_type, q.dtype) == ("none", dtype)
    assert bytes(q.codes) == bytes(_bytes(weight))


def test_a_rotary_table_a_running_variance_and_a_routing_bias_keep_every_bit() -> None:
    for config in (_INT8, QuantizationConfig("fp16"), QuantizationConfig(mixed_precision_layers=["x"])):
        for weight in (
            1.0 / 1e8 ** (torch.arange(0, 128, 2) / 128),
            torch.full((4,), 1e-9),
            5.0 + 0.001 * torch.arange(64),
            torch.tensor(1e-6),
            torch.tensor(1e-6, dtype=torch.bfloat16),
            torch.tensor(1e-6, dtype=torch.float64),
        ):
            q = quantize_tensor(weight, config, "x")
            assert q.quant_type == "none"
            assert torch.equal(q.dequantize(), weight)


def test_the_result_shares_no_memory_with_the_weight() -> None:
    for weight in (torch.arange(6), _weights(5).half(), _weights(4, 4)):
        q = quantize_tensor(weight, _INT8)
        before = q.dequantize()
        weight.zero_()
        assert torch.equal(q.dequantize(), before)


def test_names_decide_as_in_a_checkpoint() -> None:
    config = QuantizationConfig("int2", per_channel=False, mixed_precision_layers=["embed"])
    assert quantize_tensor(_weights(4, 8), config, "model.embed_tokens.weight").quant_type == "fp16"
    assert quantize_tensor(_weights(4, 8), config, "model.q_proj.weight").quant_type == "int2"


@pytest.mark.parametrize("shape", [(1, 48), (48, 1), (1, 1, 48), (48, 1, 1), (1, 48, 1)])
@pytest.mark.parametrize("settings", [{"quant_type": "int8"}, {"quant_type": "int4", "group_size": 16}])
def test_vectors_of_more_dimensions_are_quantized_where_an_override_says_so(
    shape: tuple[int, ...], settings: dict[str, Any]
) -> None:
    config = QuantizationConfig(overrides=[LayerOverride("x", **settings)])
    weight = _weights(*shape)
    q = quantize_tensor(weight, config, "x")
    assert (q.quant_type, q.shape) == (settings["quant_type"], shape)
    step = weight.abs().max() / (127 if settings["quant_type"] == "int8" else 7)
    assert (q.dequantize() - weight).abs().max() <= step * 0.75


def test_conv_kernels_have_a_scale_for_each_output_channel() -> None:
    weight = _weights(6, 3, 5, 5)
    q = quantize_tensor(weight, _INT8)
    assert q.scales.shape == (6,)
    assert q.dequantize().shape == weight.shape
    _assert_same(q.rows(2, 3), quantize_tensor(weight[2:3], _INT8))


def test_fused_experts_have_a_scale_for_each_row_of_each_expert() -> None:
    weight = _weights(4, 6, 32)
    q = quantize_tensor(weight, _INT8, "layers.0.mlp.experts.gate_up_proj")
    assert (q.row_dims, q.scales.shape) == (2, (24,))
    flat = quantize_tensor(weight.reshape(24, 32), _INT8)
    np.testing.assert_array_equal(q.scales, flat.scales)
    assert torch.equal(q.dequantize(), flat.dequantize().reshape(4, 6, 32))


@pytest.mark.parametrize(
    ("weight", "dtype"),
    [
        (torch.zeros(2, 2, dtype=torch.complex64), "complex64"),
        (np.zeros((2, 2), np.complex128), "complex128"),
        (np.zeros((2, 2), np.longdouble), np.dtype(np.longdouble).name),
        (np.array([[None]]), "object"),
    ],
)
def test_dtypes_without_a_meaning_here_are_refused(weight: torch.Tensor | np.ndarray, dtype: str) -> None:
    with pytest.raises(InvalidConfig, match=f"dtype {dtype} is not supported"):
        quantize_tensor(weight, _INT8)


def test_other_objects_are_refused() -> None:
    with pytest.raises(InvalidConfig, match="not list"):
        quantize_tensor([1.0, 2.0], _INT8)  # type: ignore[arg-type]


_METHODS = [
    QuantSpec("int8", per_channel=True),
    QuantSpec("int8", per_channel=True, symmetric=False),
    QuantSpec("int4", per_channel=False, group_size=4, method="mse"),
    QuantSpec("int2", per_channel=False, group_size=4, symmetric=False, method="mse"),
    QuantSpec("int8", per_channel=False, group_size=0),
    QuantSpec("int2", per_channel=False, group_size=0, symmetric=False, method="mse"),
]


@pytest.mark.parametrize("spec", _METHODS)
@pytest.mark.parametrize("dtype", _FLOATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_inf_are_errors_that_say_where(spec: QuantSpec, dtype: str, value: float) -> None:
    weight = _weights(5, 9).to(getattr(torch, dtype)).double()
    what = "NaN" if np.isnan(value) or dtype == "float8_e4m3fn" else "inf"  # which has no inf
    weight[3, 7] = value if what == "inf" else float("nan")
    weight[4, 0] = float("nan")
    broken = weight.to(getattr(torch, dtype))
    with pytest.raises(UnquantizableWeights, match=rf"'a\.weight'.*{what} at index \[3, 7\]"):
        quantize_values(_bytes(broken), (5, 9), dtype, spec, layer="a.weight")


@pytest.mark.parametrize("spec", _METHODS)
def test_the_index_is_that_of_the_whole_layer(spec: QuantSpec) -> None:
    block = _weights(2, 3, 4)
    block[1, 2, 3] = float("nan")
    with pytest.raises(UnquantizableWeights, match=r"NaN at index \[11, 2, 3\]"):
        quantize_values(
            _bytes(block), (2, 3, 4), "float32", spec, layer_shape=(20, 3, 4), first_value=10 * 12
        )


@pytest.mark.parametrize("spec", [*_METHODS, kept_spec()])
@pytest.mark.parametrize("dtype", _FLOATS)
def test_such_layers_are_kept_byte_for_byte_where_asked(spec: QuantSpec, dtype: str) -> None:
    weight = _weights(5, 9)
    weight[3, 7] = float("nan")
    values = _bytes(weight.to(getattr(torch, dtype)))
    keeping = QuantSpec(**{**spec.to_dict(), "keep_non_finite": True})
    q = quantize_values(values, (5, 9), dtype, keeping)
    assert q.quant_type == "none"
    np.testing.assert_array_equal(q.codes, values)
    np.testing.assert_array_equal(q.values().reshape(-1).view(np.uint8), values)


@pytest.mark.parametrize("asked_for", ["its bytes", "16 bits"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16", "float8_e5m2"])
def test_nan_and_inf_in_what_is_kept_survive_and_are_counted(asked_for: str, dtype: str) -> None:
    spec = kept_spec() if asked_for == "its bytes" else half_spec(dtype)
    weight = torch.tensor([[float("nan"), 1.0, -2.0], [float("-inf"), float("-inf"), float("inf")]])
    values = _bytes(weight.to(getattr(torch, dtype)))
    q = quantize_values(values, (2, 3), dtype, spec)
    np.testing.assert_array_equal(q.values().reshape(-1).view(np.uint8), values)
    assert q.errors is not None
    assert (q.errors.nan, q.errors.inf, q.errors.minus_inf) == (1, 1, 2)
    assert q.errors.non_finite == "1 NaN, 1 inf, 2 -inf"
    assert (q.errors.count, q.errors.sum_w2, q.errors.sum_d2, q.errors.sum_e2) == (6, 5.0, 5.0, 0.0)


def test_inf_that_fp16_has_as_well_survives_in_it() -> None:
    weight = torch.tensor([[float("-inf"), 0.0], [0.0, float("inf")]])
    q = quantize_values(_bytes(weight), (2, 2), "float32", half_spec("float32"))
    assert q.quant_type == "fp16"
    assert torch.equal(q.dequantize(), weight)
    assert q.errors is not None
    assert q.errors.non_finite == "1 inf, 1 -inf"
    assert q.metrics["cosine"] == 1.0


def test_float64_beyond_float32_is_an_error_with_a_way_out() -> None:
    weight = torch.tensor([[1.0, 1e300], [2.0, 3.0]], dtype=torch.float64)
    with pytest.raises(UnquantizableWeights, match="mixed_precision_layers"):
        quantize_tensor(weight, _INT8)
    kept = quantize_tensor(weight, QuantizationConfig(mixed_precision_layers=["big"]), "big")
    assert torch.equal(kept.dequantize(), weight)


def test_memory_for_the_codes_is_asked_for_once() -> None:
    asked: list[int] = []

    def allocate(nbytes: int) -> np.ndarray:
        asked.append(nbytes)
        return np.full(nbytes, 255, np.uint8)

    weight = _weights(3, 10)
    spec = QuantSpec("int2", per_channel=True)
    q = quantize_values(_bytes(weight), (3, 10), "float32", spec, allocate=allocate)
    assert asked == [9]
    _assert_same(q, quantize_values(_bytes(weight), (3, 10), "float32", spec))


@pytest.mark.parametrize("spec", [spec for spec in _METHODS if spec.quant_axis == 0])
def test_row_blocks_add_up_to_the_layer(spec: QuantSpec) -> None:
    weight = _weights(11, 21).to(torch.bfloat16)
    whole = quantize_values(_bytes(weight), (11, 21), "bfloat16", spec)
    cuts = [0, 1, 4, 11]
    blocks = [quantize_values(_bytes(weight[a:b]), (b - a, 21), "bfloat16", spec) for a, b in pairwise(cuts)]
    for name in ("codes", "scales", "zero_points"):
        joined = np.concatenate([getattr(block, name) for block in blocks])
        np.testing.assert_array_equal(joined, getattr(whole, name))
    assert whole.errors is not None
    assert sum(block.errors.sum_e2 for block in blocks if block.errors) == pytest.approx(whole.errors.sum_e2)


def test_every_dtype_of_a_checkpoint_is_taken() -> None:
    for dtype in DTYPES.keys() - {"float4_e2m1fn_x2"}:  # torch makes none of these: test_sources has them
        weight = torch.ones(2, 4).to(getattr(torch, dtype))
        assert torch.equal(quantize_tensor(weight, _INT8).dequantize().double(), weight.double())
