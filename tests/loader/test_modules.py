"""A torch module is filled from a dataset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arrowquant_dist.errors import InvalidConfig, ModelMismatch
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


# Names that share memory


class Shared(torch.nn.Module):
    """Several names of one tensor, as T5 has them; `how` says in which way they share it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(6, 4)
        self.head = torch.nn.Linear(4, 6, bias=False)
        if how == "parameter":
            self.head.weight = self.embed.weight
        elif how == "memory":
            self.head.weight = torch.nn.Parameter(self.embed.weight.data)
        elif how == "assigned":
            self.head.weight.data = self.embed.weight.data
        elif how == "overlap":
            both = torch.zeros(8, 4)
            self.embed.weight = torch.nn.Parameter(both[:6])
            self.head.weight = torch.nn.Parameter(both[2:])
        elif how == "turned":
            both = torch.zeros(8, 4)
            self.embed.weight = torch.nn.Parameter(both[:6])
            self.head.weight = torch.nn.Parameter(both.view(-1)[:24].as_strided((6, 4), (1, 6)))
        elif how == "columns":
            both = torch.zeros(6, 8)
            self.embed.weight = torch.nn.Parameter(both[:, :4])
            self.head.weight = torch.nn.Parameter(both[:, 4:])


def two_layers(tmp_path: Path, embed: torch.Tensor, head: torch.Tensor) -> WeightLoader:
    rows = [
        kept_row("embed.weight", embed.numpy(), "float32"),
        kept_row("head.weight", head.numpy(), "float32"),
    ]
    return WeightLoader(write_v2(tmp_path / "two.parquet", rows))


@pytest.mark.parametrize("how", ["parameter", "memory", "assigned", "overlap", "turned"])
def test_names_that_share_memory_and_differ_in_the_dataset_are_refused_by_name(
    tmp_path: Path, how: str
) -> None:
    loader = two_layers(tmp_path, torch.randn(6, 4), torch.randn(6, 4))
    model = Shared(how)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(
        ModelMismatch, match=r"Shared keeps 'embed.weight' and 'head.weight' in the same memory"
    ):
        loader.load_into(model)
    with pytest.raises(ModelMismatch, match="untie them"):
        loader.load_into(model, strict=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_tied_parameters_on_the_meta_device_are_known_by_identity(tmp_path: Path) -> None:
    loader = two_layers(tmp_path, torch.randn(6, 4), torch.randn(6, 4))
    with torch.device("meta"):
        tied, separate = Shared("parameter"), Shared("none")
    with pytest.raises(ModelMismatch, match=r"'embed.weight' and 'head.weight'"):
        loader.load_into(tied)
    assert tied.embed.weight.is_meta
    loader.load_into(separate)
    assert torch.equal(separate.head.weight, loader["head.weight"])


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_equal_layers_fill_a_tensor_that_two_names_share(tmp_path: Path, device: str) -> None:
    weight = torch.randn(6, 4)
    weight[0, 0] = torch.nan
    loader = two_layers(tmp_path, weight, weight)
    with torch.device(device):
        model = Shared("parameter")
    for _ in range(2):
        assert loader.load_into(model) == ([], [])
        assert model.head.weight is model.embed.weight
        assert torch.equal(model.embed.weight.nan_to_num(9.0), weight.nan_to_num(9.0))


def test_layers_count_as_equal_in_the_dtype_of_the_module(tmp_path: Path) -> None:
    weight = torch.randn(6, 4).half().float()
    loader = two_layers(tmp_path, weight, weight + 1e-6)
    with pytest.raises(ModelMismatch, match="untie them"):
        loader.load_into(Shared("parameter"))
    model = Shared("parameter").half()
    loader.load_into(model)
    assert torch.equal(model.head.weight, weight.half())


@pytest.mark.parametrize("how", ["overlap", "turned", "columns"])
def test_views_that_agree_where_they_overlap_are_filled(tmp_path: Path, how: str) -> None:
    both = torch.randn(8, 4)
    turned = both.reshape(-1)[:24].as_strided((6, 4), (1, 6))
    head = {"overlap": both[2:], "turned": turned, "columns": torch.randn(6, 4)}[how].contiguous()
    loader = two_layers(tmp_path, both[:6].contiguous(), head)
    model = Shared(how)
    loader.load_into(model)
    assert torch.equal(model.embed.weight, both[:6])
    assert torch.equal(model.head.weight, head)


def test_one_name_is_enough_for_tensors_that_share_their_memory(tmp_path: Path) -> None:
    weight = torch.randn(6, 4)
    path = write_v2(tmp_path / "one.parquet", [kept_row("embed.weight", weight.numpy(), "float32")])
    model = Shared("memory")
    assert WeightLoader(path).load_into(model) == ([], [])
    assert torch.equal(model.head.weight, weight)


def test_large_layers_are_compared_within_the_budget(tmp_path: Path) -> None:
    weight = torch.randn(4096, 64)
    other = weight.clone()
    other[-1, -1] += 1
    rows = [
        kept_row("embed.weight", weight.numpy(), "float32"),
        kept_row("head.weight", other.numpy(), "float32"),
    ]
    model = Shared("none")
    model.embed.weight = torch.nn.Parameter(torch.zeros(4096, 64))
    model.head.weight = model.embed.weight
    loader = WeightLoader(write_v2(tmp_path / "w.parquet", rows), "12MiB")
    with pytest.raises(ModelMismatch, match="untie them"):
        loader.load_into(model)
    assert loader.stats.peak_nbytes <= 12 << 20


# What cannot be filled


def test_a_float_layer_is_not_cut_down_to_whole_numbers(tmp_path: Path) -> None:
    model = torch.nn.Module()
    model.register_buffer("w", torch.zeros(2, 2, dtype=torch.int8))
    path = write_v2(tmp_path / "w.parquet", [kept_row("w", np.full((2, 2), 0.5, "<f4"), "float32")])
    with pytest.raises(ModelMismatch, match=r"'w' is float32 but int8 in the module"):
        WeightLoader(path).load_into(model)
    assert not model.get_buffer("w").any()


def test_whole_numbers_have_to_fit(tmp_path: Path) -> None:
    path = write_v2(tmp_path / "w.parquet", [kept_row("w", np.array([3, 300], "<i8"), "int64")])
    model = torch.nn.Module()
    model.register_buffer("w", torch.zeros(2, dtype=torch.int16))
    WeightLoader(path).load_into(model)
    assert model.get_buffer("w").tolist() == [3, 300]
    model.register_buffer("w", torch.zeros(2, dtype=torch.uint8))
    with pytest.raises(ModelMismatch, match=r"do not fit into torch\.uint8"):
        WeightLoader(path).load_into(model)


def _expanded() -> torch.nn.Module:
    model = torch.nn.Module()
    model.w = torch.nn.Parameter(torch.zeros(1, 3).expand(2, 3))
    return model


def _lazy() -> torch.nn.Module:
    model = torch.nn.Module()
    model.w = torch.nn.UninitializedParameter()
    return model


def _sparse() -> torch.nn.Module:
    model = torch.nn.Module()
    model.w = torch.nn.Parameter(torch.zeros(2, 3).to_sparse())
    return model


def _freed() -> torch.nn.Module:
    model = torch.nn.Module()
    model.w = torch.nn.Parameter(torch.zeros(2, 3))
    model.w.untyped_storage().resize_(0)
    return model


def _hooked() -> torch.nn.Module:
    model = torch.nn.Module()
    model.w = torch.nn.Parameter(torch.zeros(2, 3))

    def gathered(_module: object, state: dict[str, object], *_: object) -> None:
        state["w"] = torch.zeros(2, 3)

    model.register_state_dict_post_hook(gathered)  # type: ignore[no-untyped-call]
    return model


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_expanded, "share one place in memory"),
        (_lazy, "not initialized yet, so run the module once first"),
        (_sparse, "not plain tensors"),
        (_freed, "not plain tensors"),
        (_hooked, "created by a state_dict hook"),
    ],
)
def test_tensors_that_cannot_be_filled_are_named_first(
    tmp_path: Path, make: Callable[[], torch.nn.Module], said: str
) -> None:
    path = write_v2(tmp_path / "w.parquet", [kept_row("w", np.ones((2, 3), "<f4"), "float32")])
    with pytest.raises(ModelMismatch, match=rf"{said}.*: '?w"):
        WeightLoader(path).load_into(make())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (torch.nn.Linear, "not the class Linear; create an instance first"),
        (None, "not None; pass the model itself"),
        ({"w": 1}, "not a value of type dict"),
    ],
)
def test_what_is_no_module_is_refused(tmp_path: Path, given: Any, said: str) -> None:
    path = write_v2(tmp_path / "w.parquet", [kept_row("w", np.ones((2, 3), "<f4"), "float32")])
    with pytest.raises(InvalidConfig, match=said):
        WeightLoader(path).load_into(given)


def test_a_module_without_parameters_takes_nothing(tmp_path: Path) -> None:
    path = write_v2(tmp_path / "w.parquet", [kept_row("w", np.ones((2, 3), "<f4"), "float32")])
    with pytest.raises(ModelMismatch, match="not in the module: w"):
        WeightLoader(path).load_into(torch.nn.Identity())
    assert WeightLoader(path).load_into(torch.nn.Identity(), strict=False) == ([], ["w"])


def test_a_mismatch_of_thousands_of_names_stays_short(tmp_path: Path) -> None:
    rows = [kept_row(f"layer.{i}.{'x' * 200}", np.ones(1, "<f4"), "float32") for i in range(2_000)]
    model = torch.nn.Module()
    for i in range(2_000):
        model.register_parameter(f"w{i}", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(ModelMismatch) as caught:
        WeightLoader(write_v2(tmp_path / "w.parquet", rows)).load_into(model)
    assert len(str(caught.value)) < 2_000
    assert "w0, w1, w2, w3, w4 and 1995 more" in str(caught.value)
    assert str(caught.value).count("and 1995 more") == 2
    assert str(caught.value).endswith("or pass strict=False if names may differ")
