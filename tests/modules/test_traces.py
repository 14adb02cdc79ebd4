"""Tools that trace a layer of codes, to compute it again with other inputs, record that it uses its inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from arrowquant_dist.config import Activations
from arrowquant_dist.modules import QuantEmbedding, QuantLinear, products
from tests.modules.matrices import random_matrix

MATRIX = random_matrix(12, 96, 4, 32, "real")


def by_jit(layer: torch.nn.Module, values: torch.Tensor) -> Any:
    return torch.jit.trace(layer, values)  # type: ignore[no-untyped-call]


def by_fx(layer: torch.nn.Module, values: torch.Tensor) -> Any:
    return make_fx(layer)(values)


def by_export(layer: torch.nn.Module, values: torch.Tensor) -> Any:
    return torch.export.export(layer, (values,)).module()


WAYS = pytest.mark.parametrize("trace", [by_jit, by_fx, by_export])
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),  # of checks of the shape
]


@WAYS
@pytest.mark.parametrize("activations", [None, "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inputs", [1, 5, 70])
@pytest.mark.parametrize("large", [0, 1 << 60])
def test_products_of_a_trace_are_those_of_its_inputs(
    trace: Callable[[torch.nn.Module, torch.Tensor], Any],
    activations: Activations | None,
    dtype: torch.dtype,
    inputs: int,
    large: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(products, "LARGE", large)
    layer = QuantLinear(MATRIX.weight, torch.ones(12), activations).requires_grad_(False)  # noqa: FBT003
    seen, others = torch.randn(2, inputs, 96, dtype=dtype)
    traced = trace(layer, seen)
    assert torch.equal(traced(others), layer(others))
    assert torch.equal(traced(seen), layer(seen))


@WAYS
def test_rows_of_a_trace_are_those_of_its_indices(
    trace: Callable[[torch.nn.Module, torch.Tensor], Any],
) -> None:
    traced = trace(QuantEmbedding(MATRIX.weight), torch.tensor([[1, 2], [3, 4]]))
    others = torch.tensor([[11, 0], [7, 7]])
    assert torch.equal(traced(others), MATRIX.decoded[others])
    with pytest.raises((IndexError, RuntimeError), match="out of range"):
        traced(torch.tensor([[12, 0], [7, 7]]))
