"""A torch module is filled from a dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from arrowquant_dist.errors import ModelMismatch
from arrowquant_dist.loader import WeightLoader
from tests.format.encoder import Row, kept_row, write_v2

# Modules


class Tied(torch.nn.Module):
    def __init__(self, *, tie: bool = True) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(5, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.head = torch.nn.Linear(4, 5, bias=False)
        if tie:
            self.head.weight = self.embed.weight


def rows_of(module: torch.nn.Module, *, leave_out: tuple[str, ...] = ()) -> list[Row]:
    return [
        kept_row(name, value.detach().numpy(), str(value.dtype))
        for name, value in module.state_dict().items()
        if name not in leave_out
    ]


@pytest.fixture
def tied_file(tmp_path: Path) -> tuple[Path, Tied]:
    torch.manual_seed(0)
    model = Tied()
    model.norm.get_buffer("running_mean").fill_(3)
    return write_v2(tmp_path / "tied.parquet", rows_of(model, leave_out=("head.weight",))), model


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_module_is_filled_and_its_tied_parameters_stay_tied(
    tied_file: tuple[Path, Tied], device: str
) -> None:
    path, original = tied_file
    with torch.device(device):
        model = Tied()
    result = WeightLoader(str(path)).load_into(model)
    assert result == ([], [])
    assert model.head.weight is model.embed.weight
    assert isinstance(model.embed.weight, torch.nn.Parameter)
    assert model.embed.weight.requires_grad
    for name, value in model.state_dict().items():
        assert torch.equal(value, original.state_dict()[name])


def test_parameters_keep_their_dtype_and_memory(tied_file: tuple[Path, Tied]) -> None:
    path, original = tied_file
    model = Tied().to(torch.float16)
    weight = model.embed.weight
    WeightLoader(str(path)).load_into(model)
    assert model.embed.weight is weight
    assert weight.dtype == torch.float16
    assert torch.equal(weight, original.embed.weight.half())
    assert model.norm.get_buffer("num_batches_tracked").dtype == torch.int64


class Computed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("positions", torch.arange(4), persistent=False)
        self.register_buffer("other", torch.arange(2), persistent=False)
        self.linear = torch.nn.Linear(2, 2, bias=False)


@pytest.mark.parametrize(("device", "expected"), [("cpu", [0, 1, 2, 3]), ("meta", [3, 2, 1, 0])])
def test_computed_buffers_are_taken_only_where_there_are_none(
    tmp_path: Path, device: str, expected: list[int]
) -> None:
    rows = [*rows_of(Computed()), kept_row("positions", np.array([3, 2, 1, 0], "<i8"), "int64")]
    loader = WeightLoader(str(write_v2(tmp_path / "w.parquet", rows)))
    with torch.device(device):
        model = Computed()
    assert loader.load_into(model) == ([], [])
    assert model.get_buffer("positions").tolist() == expected
    assert "positions" not in model.state_dict()


def test_what_does_not_go_together_is_one_error_before_anything_is_changed(
    tied_file: tuple[Path, Tied],
) -> None:
    path, _ = tied_file

    class Other(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(6, 4)
            self.extra = torch.nn.Linear(2, 2, bias=False)

    model = Other()
    before = model.embed.weight.detach().clone()
    with pytest.raises(ModelMismatch) as caught:
        WeightLoader(str(path)).load_into(model)
    for part in ("extra.weight", "norm.weight", r"[5, 4]", "[6, 4]"):
        assert part in str(caught.value)
    with pytest.raises(ModelMismatch, match="shape"):
        WeightLoader(str(path)).load_into(model, strict=False)
    assert torch.equal(model.embed.weight, before)


def test_names_that_differ_are_returned_when_that_is_asked_for(tied_file: tuple[Path, Tied]) -> None:
    path, original = tied_file
    model = torch.nn.Module()
    model.embed = torch.nn.Embedding(5, 4)
    model.extra = torch.nn.Linear(2, 2, bias=False)
    missing, unexpected = WeightLoader(str(path)).load_into(model, strict=False)
    assert missing == ["extra.weight"]
    assert unexpected == [name for name in original.state_dict() if name.startswith("norm")]
    assert torch.equal(model.embed.weight, original.embed.weight)
