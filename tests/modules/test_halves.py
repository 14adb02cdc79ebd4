"""Many inputs of 16 bits give what the model that is loaded decoded in that dtype gives, within its own rounding.

Its weights and bias are rounded to 16 bits. Each of the `columns` products and each of their sums is rounded in float32
(in any order, and twice if the CPU adds them up in pairs), and the result once to 16 bits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_dist.modules import QuantLinear, QuantWeight, products, tiles
from tests.modules.at_once import called_at_once
from tests.modules.matrices import Matrix, random_matrix

DTYPES = [torch.bfloat16, torch.float16]
UNIT = 2.0**-24
MANY = products.FEW_HALVES + 1


@pytest.fixture(params=["decoded", "kernels"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which way rows are decoded; on any CPU products are in 16 bits."""
    monkeypatch.setattr(products, "_multiplies", lambda _: True)
    monkeypatch.setattr(products, "LARGE", 0 if request.param == "kernels" else 1 << 60)


def check(
    product: torch.Tensor, values: torch.Tensor, matrix: Matrix, bias: torch.Tensor | None = None
) -> None:
    """Of the layer and of torch's own on the decoded weight: within their rounding of the sums in float64."""
    dtype = values.dtype
    weight = matrix.decoded.to(dtype)
    own = None if bias is None else bias.detach().to(dtype)
    expected = torch.nn.functional.linear(values, weight, own)
    wide, rows = values.double().reshape(-1, values.shape[-1]), weight.double()
    exact, size = wide @ rows.T, wide.abs() @ rows.abs().T
    if own is not None:
        exact, size = exact + own.double(), size + own.double().abs()
    bound = torch.finfo(dtype).eps / 2 * exact.abs() + 2 * (rows.shape[1] + 3) * UNIT * size
    bound += torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    assert (product.shape, product.dtype) == (expected.shape, dtype)
    for found in (product, expected):
        assert ((found.detach().double().reshape(exact.shape) - exact).abs() <= bound).all()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("zeros", ["none", "whole", "real", "far"])
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_products_are_those_of_the_model_loaded_decoded(bits: int, zeros: str, dtype: torch.dtype) -> None:
    shapes = [(12, 160, 0), (9, 160, 64), (6, 100, 32), (7, 33, 8), (5, 7, 5), (1, 1, 0), (3, 40, 64)]
    for index, (rows, columns, group_size) in enumerate(shapes):
        matrix = random_matrix(rows, columns, bits, group_size, zeros, seed=index)
        values, bias = torch.randn(MANY + 20 * index, columns).to(dtype), torch.randn(rows).to(dtype)
        check(QuantLinear(matrix.weight, bias)(values), values, matrix, bias)


@settings(max_examples=60)
@given(
    st.tuples(st.integers(1, 300), st.integers(1, 17), st.integers(1, 67) | st.just(2000)),
    st.sampled_from([8, 4, 3, 2]),
    st.sampled_from(["none", "whole", "real"]),
    st.sampled_from([0, 13, 32, 128]) | st.integers(1, 40),
    st.sampled_from(DTYPES),
    st.sampled_from([0, 1 << 60]),
    st.integers(1, 400),
    st.integers(0, 49),
)
def test_any_form_and_tile_stays_within_that_rounding(
    shape: tuple[int, int, int],
    bits: int,
    zeros: str,
    group: int,
    dtype: torch.dtype,
    large: int,
    tile: int,
    seed: int,
) -> None:
    inputs, rows, columns = shape
    matrix = random_matrix(rows, columns, bits, group if group < columns else 0, zeros, seed)
    values = torch.from_numpy(np.random.default_rng(seed).standard_normal((inputs, columns))).to(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "_multiplies", lambda _: True)
        patch.setattr(products, "FEW_HALVES", 0)
        patch.setattr(products, "LARGE", large)
        patch.setattr(tiles, "TILE_VALUES", tile)
        check(QuantLinear(matrix.weight)(values), values, matrix)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(3, MANY, 48), (2, 3, MANY, 48), (MANY, 1, 48), (0, MANY, 48), (MANY, 0, 48)]
)
def test_leading_dimensions_are_those_of_the_inputs(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    matrix, bias = random_matrix(10, 48, 4, 16, "real"), torch.randn(10).to(dtype)
    values = torch.randn(shape).to(dtype)
    check(QuantLinear(matrix.weight, bias)(values), values, matrix, bias)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    "lay",
    [
        lambda values: values.T.contiguous().T,
        lambda values: torch.stack([values, -values], -1)[..., 0],
        lambda values: torch.cat([values, values], 1)[:, : values.shape[1]],
        lambda values: torch.cat([values[:1], values])[1:],
        lambda values: values[:1].expand(MANY, -1),
        lambda values: torch._neg_view(values),  # noqa: PLW0108
        lambda values: values.reshape(1, -1).squeeze(0)[: values.numel() - 1].as_strided((MANY, 47), (48, 1)),
    ],
    ids=["transposed", "every second", "left half", "offset", "one repeated", "negated", "strided"],
)
def test_inputs_may_lie_anyhow_in_memory(lay: Callable[[torch.Tensor], torch.Tensor]) -> None:
    values = lay(torch.randn(MANY, 48).bfloat16())
    matrix = random_matrix(10, values.shape[1], 4, 16)
    check(QuantLinear(matrix.weight)(values), values, matrix)


@pytest.mark.usefixtures("way")
def test_a_bias_of_32_bits_is_rounded_as_autocast_rounds_it() -> None:
    matrix, bias = random_matrix(10, 48, 4, 16), torch.randn(10)
    layer, values = QuantLinear(matrix.weight, bias), torch.randn(MANY, 48)
    check(layer(values.bfloat16()), values.bfloat16(), matrix, bias)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(values), layer(values.bfloat16()))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_beyond_the_dtype_are_its_largest_as_decoded_ones_are(dtype: torch.dtype) -> None:
    most = float(torch.finfo(dtype).max)
    packed = replace(random_matrix(2, 8, 8).packed, scales=np.full(2, 3 * most if most < 1e9 else 1e38))
    packed = replace(packed, scales=packed.scales.astype(np.float32))
    values = torch.eye(8, dtype=dtype).repeat(MANY, 1)
    product = QuantLinear(QuantWeight.of(packed))(values)
    assert product.isfinite().all()
    assert torch.equal(product[:8], packed.dequantize(dtype).T)


@pytest.mark.usefixtures("way")
def test_what_is_not_finite_stays_in_its_row() -> None:
    layer, values = QuantLinear(random_matrix(8, 48, 4, 16).weight), torch.randn(MANY, 48).bfloat16()
    values[0, 5], values[1, 7] = torch.nan, torch.inf
    product = layer(values)
    assert product[0].isnan().all()
    assert not product[1].isfinite().any()
    assert product[2:].isfinite().all()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_reach_inputs_and_bias(dtype: torch.dtype) -> None:
    matrix = random_matrix(12, 96, 4, 32, "real")
    layer = QuantLinear(matrix.weight, torch.randn(12).to(dtype))
    values = torch.randn(MANY, 96).to(dtype).requires_grad_()
    weights = torch.randn(MANY, 12).to(dtype)
    product = layer(values)
    check(product, values.detach(), matrix, layer.bias)
    (product * weights).sum().backward()
    assert values.grad is not None
    assert layer.bias is not None
    assert layer.bias.grad is not None
    tolerance = torch.finfo(dtype).eps
    expected = weights.double() @ matrix.decoded.double()
    assert torch.allclose(values.grad.double(), expected, rtol=tolerance, atol=1e-3)
    assert torch.allclose(layer.bias.grad.double(), weights.double().sum(0), rtol=tolerance, atol=1e-3)


@pytest.mark.usefixtures("way")
def test_every_way_of_calling_it_gives_the_same() -> None:
    layer = QuantLinear(random_matrix(12, 96, 3, 32, "real").weight, torch.randn(12).bfloat16())
    values = torch.randn(MANY, 96).bfloat16()
    expected = layer(values).detach()
    for call in (
        copy.deepcopy(layer),
        torch.compile(layer, backend="aot_eager", fullgraph=True),
        torch.no_grad()(layer),
        torch.inference_mode()(layer),
    ):
        found: Any = call(values)
        assert torch.equal(found, expected)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.usefixtures("way")
def test_torch_func_gives_what_it_gives_of_decoded_rows() -> None:
    matrix = random_matrix(12, 96, 4, 32, "real")
    layer = QuantLinear(matrix.weight)
    values, tangent = torch.randn(MANY, 96).bfloat16(), torch.randn(MANY, 96).bfloat16()
    found = torch.func.jvp(layer, (values,), (tangent,))
    for product, inputs in zip(found, (values, tangent), strict=True):
        exact = inputs.double() @ matrix.decoded.double().T
        assert torch.allclose(product.double(), exact, rtol=2.0**-8, atol=1e-3)


@pytest.mark.usefixtures("way")
def test_threads_that_call_at_once_each_get_their_own() -> None:
    layer = QuantLinear(random_matrix(64, 96, 4, 32).weight)
    batches = [torch.randn(MANY + index, 96).bfloat16() for index in range(16)]
    expected = [layer(values) for values in batches]
    found = called_at_once(layer, batches, calls=5)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_few_inputs_meet_values_that_are_not_rounded() -> None:
    matrix = random_matrix(24, 384, 4, 128, "real")
    for dtype in DTYPES:
        values = torch.randn(MANY - 1, 384).to(dtype)
        exact = values.double() @ matrix.decoded.double().T
        found = QuantLinear(matrix.weight)(values).double()
        assert torch.allclose(found, exact, rtol=torch.finfo(dtype).eps, atol=2e-4)


@pytest.mark.parametrize(
    ("found", "bfloat16", "float16"),
    [
        ({"avx512_bf16": True, "avx512_fp16": False}, True, False),
        ({"amx_bf16": True, "amx_fp16": True}, True, True),
        ({"bf16": True, "fp16_arith": True}, True, False),
        ({"avx2": True, "architecture": "x86_64", "num_physical_cores": 2}, False, False),
    ],
    ids=["Zen 4", "AMX", "ARM", "AVX2"],
)
def test_products_in_16_bits_are_for_cpus_that_have_them(
    found: dict[str, Any], *, bfloat16: bool, float16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    for dtype, expected in ((torch.bfloat16, bfloat16), (torch.float16, float16)):
        assert products._multiplies.__wrapped__(dtype) is expected


def test_a_torch_that_does_not_tell_multiplies_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert products._multiplies.__wrapped__(torch.bfloat16) is False
