"""What parameters take of each weight is counted, so that a parameter that is too small for it is noticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from arrowquant_dist.plugins.vllm.lazy import Box, LazyTensor
from arrowquant_dist.plugins.vllm.taken import TakenParts


@dataclass(frozen=True)
class Counting:
    """A layer of 0, 1, 2 …"""

    shape: tuple[int, ...]
    name: str = "layer"
    dtype: torch.dtype = torch.float32
    most_nbytes: int = 64

    def read(self, box: Box) -> torch.Tensor:
        whole = torch.arange(torch.Size(self.shape).numel(), dtype=self.dtype).reshape(*self.shape, 1)
        return whole[box.rows.start : box.rows.stop, box.columns.start : box.columns.stop].clone()


def cut_off(shape: tuple[int, ...], take: Callable[[torch.Tensor], object], ranks: int = 1) -> bool:
    taken = TakenParts(ranks)
    for name, tensor in taken.counted(iter([("layer", LazyTensor.of(Counting(shape)))])):
        assert name == "layer"
        take(tensor)
    return dict(taken.cut_off()) == {"layer": shape}


def copied(part: torch.Tensor) -> torch.Tensor:
    return torch.empty(part.shape).copy_(part)


def test_all_of_a_weight_is_enough_and_its_values_are_as_ever() -> None:
    def take(tensor: torch.Tensor) -> None:
        assert copied(tensor).tolist() == torch.arange(96.0).reshape(12, 8).tolist()

    assert not cut_off((12, 8), take)


@pytest.mark.parametrize("dim", [0, 1])
def test_half_of_it_is_not(dim: int) -> None:
    assert cut_off((12, 8), lambda tensor: copied(tensor.narrow(dim, 0, 4)))


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_a_rank_s_quarter_is(rank: int, dim: int) -> None:
    assert not cut_off((12, 8), lambda tensor: copied(tensor.chunk(4, dim)[rank]), ranks=4)


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_a_rank_s_quarter_of_half_of_it_is_not(rank: int) -> None:
    assert cut_off((16, 8), lambda tensor: copied(tensor.narrow(0, 2 * rank, 2)), ranks=4)


@pytest.mark.parametrize(("start", "rows"), [(0, 4), (4, 4), (8, 1)])
def test_ranks_of_a_padded_parameter_take_all(start: int, rows: int) -> None:
    """9 rows in parameters of 4 on 4 ranks, of which the last has padding alone."""
    assert not cut_off((9, 8), lambda tensor: copied(tensor.narrow(0, start, rows)), ranks=4)


def test_heads_that_several_ranks_have_are_no_less_than_all() -> None:
    assert not cut_off((8, 4), lambda tensor: copied(tensor.narrow(0, 0, 4)), ranks=4)


def test_parts_add_up() -> None:
    assert not cut_off((6, 8), lambda tensor: [copied(tensor[start : start + 2]) for start in (0, 2, 4)])


def test_a_weight_that_nobody_takes_is_no_matter_nor_is_a_scalar() -> None:
    assert not cut_off((6, 8), lambda _: None)
    assert not cut_off((5,), copied)
