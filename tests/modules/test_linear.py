"""A QuantLinear gives what a linear layer with the decoded values gives, within float rounding."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

from arrowquant_dist.config import Activations
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.modules import QuantEmbedding, QuantLinear, QuantWeight, products, tiles
from tests.modules.at_once import called_at_once
from tests.modules.matrices import error, random_matrix

EPS = torch.finfo(torch.float32).eps
SHAPES = [(12, 160, 0), (9, 160, 64), (6, 100, 32), (7, 33, 8), (5, 7, 5), (1, 1, 0), (3, 40, 64)]
INPUTS = [1, 2, 4, 7, 64, 65]


@pytest.fixture(params=["decoded", "kernels"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which way few inputs go: a matrix is large enough for the kernels, or not."""
    monkeypatch.setattr(products, "LARGE", 0 if request.param == "kernels" else 1 << 60)
    return str(request.param)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("zeros", ["none", "whole", "real", "far"])
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_products_are_those_of_the_decoded_values(bits: int, zeros: str, inputs: int) -> None:
    for index, (rows, columns, group_size) in enumerate(SHAPES):
        matrix = random_matrix(rows, columns, bits, group_size, zeros, seed=index)
        values, bias = torch.randn(inputs, columns), torch.randn(rows)
        product = QuantLinear(matrix.weight, bias)(values)
        assert product.shape == (inputs, rows)
        assert error(product, values, matrix.decoded, bias) < 4 * EPS


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    ("dtype", "inputs"),
    [
        *((dtype, inputs) for dtype in (torch.bfloat16, torch.float16) for inputs in (1, 3, 24)),
        *((torch.float64, inputs) for inputs in (1, 3, 80)),
    ],
)
def test_inputs_of_other_dtypes_give_their_own_rounded_once(dtype: torch.dtype, inputs: int) -> None:
    matrix = random_matrix(24, 384, 4, 128, "real")
    values = torch.randn(inputs, 384).to(dtype)
    product = QuantLinear(matrix.weight)(values)
    assert product.dtype == dtype
    exact = values.double() @ matrix.decoded.double().T
    tolerance = torch.finfo(dtype).eps
    assert torch.allclose(product.double(), exact, rtol=tolerance, atol=4 * EPS * 400)
    if dtype == torch.float64:
        assert torch.allclose(product, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("shape", [(384,), (1, 384), (2, 3, 384), (2, 1, 3, 384), (0, 384), (2, 0, 384)])
def test_leading_dimensions_are_those_of_the_inputs(shape: tuple[int, ...]) -> None:
    matrix = random_matrix(10, 384, 2, 128)
    values = torch.randn(shape)
    product = QuantLinear(matrix.weight, torch.ones(10))(values)
    expected = torch.nn.functional.linear(values, matrix.decoded, torch.ones(10))
    assert product.shape == expected.shape
    assert torch.allclose(product, expected, atol=1e-4)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("inputs", [1, 6, 70])
def test_inputs_may_lie_anyhow_in_memory(inputs: int) -> None:
    matrix = random_matrix(10, 64, 4, 32)
    values = torch.randn(64, inputs, 2)[..., 0].T
    assert error(QuantLinear(matrix.weight)(values), values, matrix.decoded) < 4 * EPS


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("inputs", [1, 6])
def test_any_number_of_threads_gives_every_row(
    threads: int, inputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "LARGE", 0)
    monkeypatch.setattr(products, "_WORTH_A_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for rows in (1, 2, 5, 16, 23):
        matrix = random_matrix(rows, 48, 4, 16)
        values = torch.randn(inputs, 48)
        assert error(QuantLinear(matrix.weight)(values), values, matrix.decoded) < 4 * EPS


def test_matrices_of_several_tiles_are_multiplied_tile_by_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE_VALUES", 48 * 5)
    matrix = random_matrix(23, 48, 3, 16, "real")
    values = torch.randn(90, 48)
    assert error(QuantLinear(matrix.weight)(values), values, matrix.decoded) < 4 * EPS


def test_infinities_and_nan_of_inputs_reach_the_result() -> None:
    matrix = random_matrix(8, 48, 4, 16)
    values = torch.randn(3, 48)
    values[0, 5], values[1, 7] = torch.nan, torch.inf
    product = QuantLinear(matrix.weight)(values)
    assert product[0].isnan().all()
    assert not product[1].isfinite().any()
    assert product[2].isfinite().all()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("inputs", [1, 5])
def test_gradients_reach_inputs_and_bias(inputs: int) -> None:
    matrix = random_matrix(12, 96, 4, 32, "real")
    layer = QuantLinear(matrix.weight, torch.randn(12))
    assert layer.bias is not None
    values = torch.randn(inputs, 96, requires_grad=True)
    weights = torch.randn(inputs, 12)
    (layer(values) * weights).sum().backward()
    assert torch.allclose(values.grad, weights @ matrix.decoded, atol=1e-4)  # type: ignore[arg-type]
    assert torch.allclose(layer.bias.grad, weights.sum(0), atol=1e-5)  # type: ignore[arg-type]
    assert [name for name, _ in layer.named_parameters()] == ["bias"]


def test_gradients_have_the_dtype_of_the_inputs() -> None:
    layer = QuantLinear(random_matrix(12, 96, 4, 32).weight)
    values = torch.randn(5, 96, dtype=torch.bfloat16, requires_grad=True)
    layer(values).sum().backward()
    assert values.grad is not None
    assert values.grad.dtype == torch.bfloat16


def test_gradients_of_gradients_are_those_of_a_linear_layer() -> None:
    layer = QuantLinear(random_matrix(3, 8, 4).weight).double()
    values = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, values)
    assert torch.autograd.gradgradcheck(layer, values)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_it_gives_the_same(mode: Any) -> None:
    layer = QuantLinear(random_matrix(12, 96, 4, 32).weight, torch.randn(12))
    values = torch.randn(5, 96)
    expected = layer(values).detach()
    with mode():
        assert torch.equal(layer(values), expected)


@pytest.mark.parametrize("gradient", [torch.enable_grad, torch.no_grad])
def test_autocast_gives_its_dtype_and_sums_in_float32(gradient: Any) -> None:
    matrix = random_matrix(12, 384, 8)
    layer = QuantLinear(matrix.weight, torch.randn(12))
    values = torch.randn(5, 384)
    with gradient(), torch.autocast("cpu", torch.bfloat16):
        product = layer(values)
    assert product.dtype == torch.bfloat16
    assert torch.equal(product, layer(values.bfloat16()))


def test_casting_a_layer_keeps_its_codes_and_casts_its_bias() -> None:
    matrix = random_matrix(12, 96, 4, 32)
    layer = QuantLinear(matrix.weight, torch.randn(12)).to(torch.bfloat16)
    assert layer.bias is not None
    assert (layer.bias.dtype, layer.weight.scales.dtype) == (torch.bfloat16, torch.float32)
    values = torch.randn(5, 96, dtype=torch.bfloat16)
    expected = values.double() @ matrix.decoded.double().T + layer.bias.double()
    assert torch.allclose(layer(values).double(), expected, rtol=1e-2, atol=1e-3)


def test_other_devices_have_the_same_operations() -> None:
    layer = QuantLinear(random_matrix(12, 96, 3, 32).weight, torch.randn(12)).to("meta")
    assert layer(torch.empty(5, 96, device="meta")).shape == (5, 12)


def test_it_can_be_compiled_into_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "LARGE", 0)
    layer = QuantLinear(random_matrix(12, 96, 4, 32).weight, torch.randn(12))
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for inputs in (1, 5):
        values = torch.randn(inputs, 96)
        assert torch.allclose(compiled(values), layer(values), atol=1e-5)


def test_its_operations_keep_what_torch_asks_of_operations() -> None:
    matrix = random_matrix(12, 96, 4, 32, "real").weight
    values = torch.randn(5, 96, requires_grad=True)
    given = (values, matrix.codes, matrix.scales, matrix.zero_points, torch.randn(12), 4, 32)
    torch.library.opcheck(torch.ops.arrowquant.linear.default, given)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])  # noqa: S301
def test_copies_give_the_same(copied: Any) -> None:
    layer = QuantLinear(random_matrix(12, 96, 4, 32).weight, torch.randn(12))
    values = torch.randn(5, 96)
    assert torch.equal(copied(layer)(values), layer(values))


def test_a_state_dict_goes_into_another_layer_of_the_same_form() -> None:
    layer = QuantLinear(random_matrix(12, 96, 4, 32).weight, torch.randn(12))
    assert [*layer.state_dict()] == [
        "bias",
        *(f"weight.{name}" for name in ("codes", "scales", "zero_points", "form")),
    ]
    other = QuantLinear(QuantWeight(12, 96, 4, 32), torch.zeros(12))
    other.load_state_dict(layer.state_dict())
    values = torch.randn(5, 96)
    assert torch.equal(other(values), layer(values))


def test_threads_that_call_at_once_each_get_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "LARGE", 0)
    monkeypatch.setattr(products, "_WORTH_A_THREAD", 1)
    layer = QuantLinear(random_matrix(64, 96, 4, 32).weight)
    batches = [torch.randn(1 + index % 5, 96) for index in range(24)]
    found = called_at_once(layer, batches)
    assert all(torch.equal(one, layer(values)) for one, values in zip(found, batches, strict=True))


@pytest.mark.parametrize(
    "values",
    [
        torch.randn(3, 95),
        torch.randn(96, 3),
        torch.tensor(1.0),
        torch.ones(3, 96, dtype=torch.int64),
        torch.ones(3, 96, dtype=torch.complex64),
        torch.ones(3, 96).to(torch.float8_e4m3fn),
        torch.randn(3, 96).to_sparse(),
    ],
)
def test_values_that_do_not_fit_are_refused_before_any_work(values: torch.Tensor) -> None:
    with pytest.raises(InvalidConfig, match="takes floating-point values"):
        QuantLinear(random_matrix(12, 96, 4, 32).weight)(values)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("inputs", [1, 5])
def test_a_negated_view_is_taken_for_what_it_is(inputs: int) -> None:
    layer, values = QuantLinear(random_matrix(12, 96, 4, 32).weight), torch.randn(inputs, 96)
    negated = torch._neg_view(values)
    assert negated.is_neg()
    assert torch.equal(layer(negated), layer(-values))


@pytest.mark.parametrize("given", [torch.nn.Parameter(torch.zeros(12, 96)), None, torch.nn.Linear(96, 12)])
def test_another_weight_than_codes_is_not_put_in_its_place(given: Any) -> None:
    for module in (
        QuantLinear(random_matrix(12, 96, 4, 32).weight),
        QuantEmbedding(random_matrix(12, 96, 4).weight),
    ):
        with pytest.raises(InvalidConfig, match="has to be a QuantWeight"):
            module.weight = given
    assert isinstance(module.weight, QuantWeight)


@pytest.mark.parametrize("weight", [None, 5, torch.zeros(2, 2), torch.nn.Linear(2, 2)])
def test_what_is_no_packed_matrix_is_refused(weight: Any) -> None:
    for kind in (QuantLinear, QuantEmbedding):
        with pytest.raises(InvalidConfig, match="has to be a QuantWeight"):
            kind(weight)


@pytest.mark.parametrize(
    "bias",
    [torch.zeros(1), torch.zeros(2, 12), torch.zeros(3), torch.ones(12, dtype=torch.int64), [0.0] * 12],
)
def test_a_bias_that_would_be_spread_is_refused(bias: Any) -> None:
    with pytest.raises(InvalidConfig, match=r"floating-point tensor of shape \[12\]"):
        QuantLinear(random_matrix(12, 96, 4, 32).weight, bias)


@pytest.mark.parametrize("activations", [None, "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("part", ["all", "weight", "bias", "values"])
@pytest.mark.parametrize("inputs", [1, 70])
@pytest.mark.usefixtures("way")
def test_what_is_on_two_devices_is_refused(
    part: str, inputs: int, dtype: torch.dtype, activations: Activations | None
) -> None:
    """Else what is on "meta", where nothing is, gives what happens to lie in memory."""
    layer = QuantLinear(random_matrix(12, 96, 4, 32).weight, torch.ones(12), activations)
    values = torch.randn(inputs, 96, dtype=dtype)
    if part == "values":
        values = values.to("meta")
    elif part == "bias":
        layer.bias = torch.nn.Parameter(torch.ones(12, device="meta"))
    else:
        (layer if part == "all" else layer.weight).to("meta")
    with pytest.raises(InvalidConfig, match=r"on (cpu|meta), but the layer is on (cpu|meta)"):
        layer(values)


def test_a_weight_of_another_shape_is_not_put_in_its_place() -> None:
    matrix = random_matrix(12, 96, 4, 32)
    layer = QuantLinear(matrix.weight)
    with pytest.raises(InvalidConfig, match=r"weight has shape \[12, 64\], and this layer's has \[12, 96\]"):
        layer.weight = random_matrix(12, 64, 4, 32).weight
    layer.weight = random_matrix(12, 96, 2, 16, seed=1).weight  # of other bits
    values = torch.randn(5, 96)
    assert error(layer(values), values, random_matrix(12, 96, 2, 16, seed=1).decoded) <= 8 * EPS
