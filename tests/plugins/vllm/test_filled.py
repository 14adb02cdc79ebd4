"""What is copied into parameters is counted, so that a missing layer among others is noticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from arrowquant_dist.plugins.vllm.filled import FillCount
from arrowquant_dist.plugins.vllm.lazy import Box, LazyTensor


@dataclass(frozen=True)
class Ones:
    """A layer of ones."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    most_nbytes: int = 1 << 20

    def read(self, box: Box) -> torch.Tensor:
        return torch.ones(len(box.rows), len(box.columns), *self.shape[2:])


def layer(name: str, *shape: int) -> Any:
    return LazyTensor.of(Ones(name, shape))


def partly(parameter: torch.Tensor, fill: Callable[[torch.Tensor], object]) -> list[str] | None:
    """The layers that it was filled from, where it is not whole."""
    owner = torch.nn.Parameter(parameter, requires_grad=False)
    filled = FillCount({"weight": owner})
    with filled:
        fill(owner.detach())
    return filled.partly().get("weight")


def test_a_fused_matrix_without_one_of_its_layers_is_not_whole() -> None:
    def fill(data: torch.Tensor) -> None:
        data.narrow(0, 0, 4).copy_(layer("q", 4, 3))
        data.narrow(0, 6, 2).copy_(layer("v", 2, 3))

    assert partly(torch.empty(8, 3), fill) == ["q", "v"]


def test_with_all_of_them_it_is_whole() -> None:
    def fill(data: torch.Tensor) -> None:
        for start, rows in ((0, 4), (4, 2), (6, 2)):
            data.narrow(0, start, rows).copy_(layer("q", rows, 3))

    assert partly(torch.empty(8, 3), fill) is None


def test_a_layer_that_is_copied_twice_counts_once() -> None:
    def fill(data: torch.Tensor) -> None:
        for _ in range(2):
            data.narrow(0, 0, 4).copy_(layer("gate", 4, 3))

    assert partly(torch.empty(8, 3), fill) == ["gate"]


def test_layers_side_by_side_are_counted_too() -> None:
    assert partly(torch.empty(3, 8), lambda data: data[:, :4].copy_(layer("gate", 3, 4))) == ["gate"]


def test_an_expert_that_is_missing_among_many_is_noticed() -> None:
    def fill(data: torch.Tensor, missing: tuple[int, int] | None) -> None:
        for expert in range(5):
            for half in range(2):
                if (expert, half) != missing:
                    data[expert].narrow(0, 4 * half, 4).copy_(layer(f"{expert}.{half}", 4, 3))

    assert partly(torch.empty(5, 8, 3), lambda data: fill(data, None)) is None
    found = partly(torch.empty(5, 8, 3), lambda data: fill(data, (3, 1)))
    assert found is not None
    assert len(found) == 9


def test_experts_that_come_together_fill_all_of_them() -> None:
    assert partly(torch.empty(5, 8, 3), lambda data: data.copy_(layer("experts", 5, 8, 3))) is None


@pytest.mark.parametrize("pad", [torch.Tensor.zero_, torch.Tensor.numel])
def test_what_a_model_pads_is_no_missing_layer(pad: Callable[[torch.Tensor], object]) -> None:
    def fill(data: torch.Tensor) -> None:
        data[:6].copy_(layer("embed", 6, 3))
        pad(data[6:])

    assert partly(torch.empty(8, 3), fill) is None


def test_zeros_in_the_place_of_what_no_checkpoint_has_fill_it() -> None:
    def fill(data: torch.Tensor) -> None:
        data[:4].copy_(layer("q.bias", 4))
        data[4:6].copy_(torch.zeros(2))
        data[6:] = layer("v.bias", 2)

    assert partly(torch.empty(8), fill) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.add_(1),
        lambda data: data.__setitem__(torch.tensor([5, 6]), torch.ones(2, 3)),
        lambda data: torch.add(torch.ones(8, 3), 1, out=data),
    ],
)
def test_what_is_changed_in_other_ways_is_not_judged(change: Callable[[torch.Tensor], object]) -> None:
    def fill(data: torch.Tensor) -> None:
        data[:2].copy_(layer("q", 2, 3))
        change(data)

    assert partly(torch.empty(8, 3), fill) is None


def test_parameters_without_memory_and_those_of_other_layers_are_let_be() -> None:
    def fill(data: torch.Tensor) -> None:
        data[:2].copy_(torch.ones(2, 3, device=data.device))

    assert partly(torch.empty(8, 3, device="meta"), fill) is None
    assert partly(torch.empty(8, 3), fill) is None
