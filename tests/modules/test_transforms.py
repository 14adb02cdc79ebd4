"""torch.func and forward-mode derivatives give the same for a layer of codes as for the decoded one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.autograd import forward_ad

from arrowquant_dist.config import Activations
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.modules import QuantEmbedding, QuantLinear, products
from tests.modules.matrices import random_matrix

# torch's own rules for derivatives of forward mode, which it reads when the first is asked for.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

MATRIX = random_matrix(12, 96, 4, 32, "real")
VALUES, TANGENT = torch.randn(5, 96), torch.randn(5, 96)


@pytest.fixture(autouse=True, params=["decoded", "kernels"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "LARGE", 0 if request.param == "kernels" else 1 << 60)


def layer(activations: Activations | None = None) -> QuantLinear:
    return QuantLinear(MATRIX.weight, torch.ones(12), activations).requires_grad_(False)  # noqa: FBT003


def plain(values: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.linear(values, MATRIX.decoded, torch.ones(12))


@pytest.mark.parametrize(
    "transform",
    [
        lambda call: torch.func.jvp(call, (VALUES,), (TANGENT,)),
        lambda call: torch.func.vjp(call, VALUES)[1](torch.ones(5, 12)),
        lambda call: torch.func.grad(lambda values: call(values).square().sum())(VALUES),
        lambda call: torch.func.jacrev(call)(VALUES[0]),
        lambda call: torch.func.jacfwd(call)(VALUES[0]),
        lambda call: torch.vmap(call)(VALUES),
        lambda call: torch.vmap(call, in_dims=1)(VALUES.expand(3, 5, 96)),
        lambda call: torch.vmap(torch.func.grad(lambda values: call(values).sum()))(VALUES),
    ],
    ids=["jvp", "vjp", "grad", "jacrev", "jacfwd", "vmap", "vmap of another dimension", "vmap of grad"],
)
def test_transforms_of_torch_func_give_what_they_give_of_decoded_rows(transform: Any) -> None:
    torch.testing.assert_close(transform(layer()), transform(plain), rtol=1e-5, atol=1e-4)


def test_a_tangent_of_the_inputs_is_not_lost() -> None:
    forward: Any = forward_ad
    with forward.dual_level():
        found = forward.unpack_dual(layer()(forward.make_dual(VALUES, TANGENT))).tangent
    torch.testing.assert_close(found, TANGENT @ MATRIX.decoded.T, rtol=1e-5, atol=1e-4)


def test_a_tangent_of_the_bias_is_not_lost() -> None:
    """Of a bias that is itself a value of torch.func: a layer is called with it as `functional_call` does."""
    own = layer()

    def call(bias: torch.Tensor) -> Any:
        return torch.func.functional_call(own, {"bias": bias}, (VALUES,))

    found = torch.func.jvp(call, (torch.ones(12),), (torch.arange(12.0),))
    assert torch.equal(found[1], torch.arange(12.0).expand(5, 12))


def test_quantized_activations_refuse_them() -> None:
    with pytest.raises(InvalidConfig, match="leave out activations"):
        torch.func.jvp(layer("int8"), (VALUES,), (TANGENT,))


def test_rows_are_looked_up_within_vmap() -> None:
    indices = torch.tensor([[1, 2], [3, 0], [5, 11]])
    assert torch.equal(torch.vmap(QuantEmbedding(MATRIX.weight))(indices), MATRIX.decoded[indices])


def test_constants_within_a_transform_are_taken_for_what_they_are() -> None:
    own = layer()

    def call(factor: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = own(VALUES) * factor
        return product.sum()

    found = torch.func.grad(call)(torch.ones(12))
    torch.testing.assert_close(found, plain(VALUES).sum(0), rtol=1e-5, atol=1e-4)
