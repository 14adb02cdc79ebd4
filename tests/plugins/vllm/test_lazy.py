"""Lazy tensors behave like tensors, and read only the rows that are left of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from arrowquant_dist.errors import ModelMismatch
from arrowquant_dist.plugins.vllm import torch_private
from arrowquant_dist.plugins.vllm.lazy import Box, LazyTensor

VALUES = torch.arange(96.0).reshape(8, 2, 6) - 40


@dataclass
class Source:
    """Values in memory that notes what is asked of it."""

    values: torch.Tensor
    most_nbytes: int = 1 << 30
    name: str = "model.layers.0.mlp.down_proj.weight"
    asked: list[Box] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    def read(self, box: Box) -> torch.Tensor:
        self.asked.append(box)
        rows, columns = (slice(run.start, run.stop) for run in box)
        return self.values[(rows, columns)[: self.values.dim()]].contiguous().clone()


def box(rows: tuple[int, int], columns: tuple[int, int] = (0, 2)) -> Box:
    return Box(range(*rows), range(*columns))


@pytest.fixture(params=["torch's wrapper", "the meta device"], autouse=True)
def made_of(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whatever lazy tensors are made of, where a torch has no private name for it too."""
    if request.param == "the meta device":
        monkeypatch.setattr(torch_private, "_MAKE", "gone")
    made: str = request.param
    return made


@pytest.mark.parametrize(
    ("view", "wanted_of"),
    [
        (lambda w: w.narrow(0, 2, 3), box((2, 5))),
        (lambda w: w[6:], box((6, 8))),
        (lambda w: w[3], box((3, 4))),
        (lambda w: w.narrow(1, 1, 1), box((0, 8), (1, 2))),
        (lambda w: w[3:5, 1, 2:4], box((3, 5), (1, 2))),
        (lambda w: w.chunk(4, 0)[1], box((2, 4))),
        (lambda w: w.split([1, 5, 2])[2], box((6, 8))),
        (lambda w: w.unbind(0)[7], box((7, 8))),
        (lambda w: w.unbind(1)[0], box((0, 8), (0, 1))),
        (lambda w: w.view(2, 4, 12)[1], box((4, 8))),
        (lambda w: w.view(2, 4, 2, 6)[1, :, 1], box((4, 8), (1, 2))),
        (lambda w: w.reshape(-1)[13:23], box((1, 2))),
        (lambda w: w.reshape(-1)[14:17], box((1, 2), (0, 1))),
        (lambda w: w.reshape(-1)[14:33], box((1, 3))),
        (lambda w: w.reshape(-1)[::13], box((0, 8))),
        (lambda w: w.flatten(1).t()[:, 1:3], box((1, 3))),
        (lambda w: w.transpose(-1, -2).narrow(0, 5, 2), box((5, 7))),
        (lambda w: w.transpose(0, 1)[1, 2:4], box((2, 4), (1, 2))),
        (lambda w: w.permute(2, 0, 1)[:, 4], box((4, 5))),
        (lambda w: w[2].unsqueeze(0).expand(3, 2, 6), box((2, 3))),
        (lambda w: w.flatten(1).t().contiguous().narrow(1, 4, 2), box((4, 6))),
        (lambda w: w.clone().detach().data[1:2], box((1, 2))),
        (lambda w: w.to(torch.bfloat16)[2:3].to(torch.float64), box((2, 3))),
        (lambda w: w.cpu()[:1], box((0, 1))),
        (lambda w: w, box((0, 8))),
    ],
)
def test_a_view_is_not_read_until_it_is_copied_and_then_what_it_consists_of(
    view: Callable[[torch.Tensor], torch.Tensor], wanted_of: Box
) -> None:
    source = Source(VALUES)
    lazy, wanted = view(LazyTensor.of(source)), view(VALUES)
    assert source.asked == []
    assert isinstance(lazy, LazyTensor)
    assert (lazy.shape, lazy.dtype, lazy.device) == (wanted.shape, wanted.dtype, wanted.device)
    place = torch.full(wanted.shape, torch.nan, dtype=wanted.dtype)
    assert place.copy_(lazy) is place
    assert place.equal(wanted)
    assert source.asked == [wanted_of]


@pytest.mark.parametrize(
    "use",
    [
        lambda w: w.float() * 2,
        lambda w: w + w,
        lambda w: 1 - w,
        lambda w: torch.cat([w, w], 1),
        lambda w: torch.stack(w.split(4)),
        lambda w: w[[1, 2]],
        lambda w: w[w[:, 0, 0] > 0],
        lambda w: w.index_select(1, torch.tensor([1])),
        lambda w: w.repeat_interleave(2, dim=0),
        lambda w: w.view(torch.int32),
        lambda w: w.transpose(0, 2).contiguous().view(-1),
        lambda w: w.mean(),
        lambda w: torch.equal(w, VALUES),
        lambda w: w[2, 1, 3].item(),
        lambda w: w.tolist(),
        lambda w: w.numpy(),
        lambda w: torch.nn.functional.pad(w, (0, 1)),
        lambda w: w.new_zeros(3) + w[0, 0, 0],
    ],
)
def test_what_needs_values_gets_those_of_the_tensor(use: Callable[[torch.Tensor], Any], made_of: str) -> None:
    wanted, lazy = use(VALUES.clone()), LazyTensor.of(Source(VALUES))
    try:
        found = use(lazy)
    except ModelMismatch:  # of which the docstring of torch_private.py tells; what is given is never wrong
        assert made_of == "the meta device"
        return
    assert not isinstance(found, LazyTensor)
    assert type(found) is type(wanted)
    assert torch.equal(torch.as_tensor(found), torch.as_tensor(wanted))


def test_a_row_parallel_part_has_its_columns_of_every_row() -> None:
    source = Source(VALUES.flatten(1))
    place = torch.empty(8, 6)
    place.copy_(LazyTensor.of(source).narrow(1, 6, 6))
    assert place.equal(VALUES[:, 1])
    assert source.asked == [box((0, 8), (6, 12))]


@pytest.mark.parametrize("shape", [(96,), (24, 4), (4, 24), (1, 96), (96, 1), (2, 3, 4, 4), (8, 12, 1)])
def test_any_part_of_any_shape_is_the_tensor_s_own(shape: tuple[int, ...]) -> None:
    values = torch.arange(96.0).reshape(shape)
    random = torch.Generator().manual_seed(3)
    for _ in range(100):
        lazy: torch.Tensor = LazyTensor.of(Source(values))
        wanted = values
        for dim in torch.randint(len(shape), (3,), generator=random).tolist():
            size = wanted.shape[dim]
            start, step = (int(torch.randint(1, size + 1, (), generator=random)) for _ in range(2))
            cut = (slice(None),) * dim + (slice(start - 1, None, step),)
            lazy, wanted = lazy[cut].transpose(0, -1), wanted[cut].transpose(0, -1)
        place = torch.empty(wanted.shape)
        place.copy_(lazy)
        assert place.equal(wanted)


def test_it_is_assigned_as_a_tensor_is() -> None:
    place = torch.zeros(3, 8, 2, 6)
    place[1] = LazyTensor.of(Source(VALUES))
    assert place[1].equal(VALUES)
    assert not place[0].any()


def test_a_parameter_of_another_dtype_takes_it() -> None:
    parameter = torch.nn.Parameter(torch.empty(2, 2, 6, dtype=torch.bfloat16), requires_grad=False)
    parameter.data.copy_(LazyTensor.of(Source(VALUES))[2:4])
    assert parameter.equal(VALUES[2:4].to(torch.bfloat16))


def test_a_scalar_is_read_whole() -> None:
    lazy = LazyTensor.of(Source(torch.tensor(3.5)))
    assert lazy.reshape(1).tolist() == [3.5]
    assert lazy.dim() == 0


def test_of_nothing_nothing_is_read() -> None:
    source = Source(VALUES)
    place = torch.empty(0, 2, 6)
    place.copy_(LazyTensor.of(source)[4:4])
    assert source.asked == []


@pytest.mark.parametrize("turned", [lambda w: w, lambda w: w.t()])
def test_more_than_the_most_is_copied_in_steps(turned: Callable[[torch.Tensor], torch.Tensor]) -> None:
    flat = VALUES.flatten(1)
    source = Source(flat, most_nbytes=2 * 12 * 4)
    place = torch.empty(turned(flat).shape)
    place.copy_(turned(LazyTensor.of(source)))
    assert place.equal(turned(flat))
    assert source.asked == [box((start, start + 2), (0, 12)) for start in (0, 2, 4, 6)]


def test_what_rounds_up_to_a_step_more_is_copied_whole() -> None:
    source = Source(VALUES.flatten(1), most_nbytes=3 * 12 * 4)
    place = torch.empty(7, 12)
    place.copy_(LazyTensor.of(source)[1:])
    assert place.equal(VALUES.flatten(1)[1:])
    assert source.asked == [box((1, 4), (0, 12)), box((4, 7), (0, 12)), box((7, 8), (0, 12))]


@pytest.mark.parametrize("change", [lambda w: w.mul_(2), lambda w: w[2:].zero_(), lambda w: w.copy_(VALUES)])
def test_a_change_in_place_is_refused_by_the_name_of_the_layer(change: Callable[[torch.Tensor], Any]) -> None:
    with pytest.raises(ModelMismatch, match="changes this weight in place") as caught:
        change(LazyTensor.of(Source(VALUES)))
    assert caught.value.layer == "model.layers.0.mlp.down_proj.weight"


def test_it_says_what_it_is() -> None:
    assert "down_proj.weight', (2, 2, 6)" in repr(LazyTensor.of(Source(VALUES))[1:3])
