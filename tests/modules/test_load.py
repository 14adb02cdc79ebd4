"""A torch module is filled from a dataset, and its matrices stay codes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arrowquant_dist.errors import CorruptWeights, InvalidConfig, ModelMismatch
from arrowquant_dist.loader import WeightLoader
from arrowquant_dist.modules import QuantEmbedding, QuantLinear, load_codes_into
from tests.format.encoder import Row, kept_row, random_row, write_v2


class Scaled(torch.nn.Embedding):
    """What a subclass does, nobody knows."""

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        return super().forward(indices) * 2


class Model(torch.nn.Module):
    """Has a head that is tied to its table, a layer that is used twice, and what has to stay as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(11, 40, padding_idx=1)
        self.scaled = Scaled(5, 40)
        self.inner = torch.nn.ModuleList([torch.nn.Linear(40, 40), torch.nn.LayerNorm(40)])
        self.again = self.inner[0]
        self.plain = torch.nn.Linear(40, 40)
        self.head = torch.nn.Linear(40, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        values = self.table(indices) + self.scaled(indices % 5)
        for layer in self.inner:
            values = layer(values)
        values = self.plain(self.again(values))
        return self.head(values)  # type: ignore[no-any-return]


def rows_of(quant_type: str, group_size: int = 16) -> list[Row]:
    rng = np.random.default_rng(0)

    def coded(name: str, rows: int) -> Row:
        return random_row(rng, name, rows, 40, quant_type, group_size=group_size, symmetric=False)

    def kept(name: str, *shape: int) -> Row:
        return kept_row(name, rng.standard_normal(shape).astype("<f4"), "float32")

    return [
        coded("table.weight", 11),
        coded("scaled.weight", 5),
        coded("inner.0.weight", 40),
        kept("inner.0.bias", 40),
        kept("inner.1.weight", 40),
        kept("inner.1.bias", 40),
        kept("plain.weight", 40, 40),
        kept("plain.bias", 40),
    ]


@pytest.fixture
def loader(tmp_path: Path) -> WeightLoader:
    return WeightLoader(write_v2(tmp_path / "w.parquet", rows_of("int4")))


def decoded_model(loader: WeightLoader) -> Model:
    model = Model()
    loader.load_into(model, strict=False)
    return model


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("quant_type", ["int8", "int4", "int3", "int2"])
def test_it_computes_what_the_decoded_model_computes(tmp_path: Path, quant_type: str, device: str) -> None:
    loader = WeightLoader(write_v2(tmp_path / "w.parquet", rows_of(quant_type)))
    with torch.device(device):
        model = Model()
    assert load_codes_into(model, loader) == ([], [])
    indices = torch.tensor([[0, 10, 3], [4, 4, 1]])
    expected = decoded_model(loader)(indices)
    assert torch.allclose(
        model(indices), expected, rtol=1e-4, atol=1e-4 * float(expected.detach().abs().max())
    )


def test_matrices_are_codes_and_all_else_is_decoded(loader: WeightLoader) -> None:
    with torch.device("meta"):
        model = Model()
    load_codes_into(model, loader)
    kinds = {name: type(module).__name__ for name, module in model.named_modules() if name.count(".") < 2}
    assert kinds == {
        "": "Model",
        "table": "QuantEmbedding",
        "table.weight": "QuantWeight",
        "scaled": "Scaled",
        "inner": "ModuleList",
        "inner.0": "QuantLinear",
        "inner.1": "LayerNorm",
        "plain": "Linear",
        "head": "QuantLinear",
    }
    assert isinstance(model.table, QuantEmbedding)
    assert model.table.padding_idx == 1
    assert not any(tensor.is_meta for tensor in model.state_dict().values())


def test_what_is_tied_or_used_twice_is_there_once(loader: WeightLoader) -> None:
    model = Model()
    load_codes_into(model, loader)
    assert model.head.weight is model.table.weight
    assert model.again is model.inner[0]
    copied = copy.deepcopy(model).to(torch.bfloat16)
    assert copied.head.weight is copied.table.weight


def test_weights_have_the_dtype_that_the_module_asks_for(tmp_path: Path) -> None:
    place = write_v2(tmp_path / "w.parquet", rows_of("int4"))
    model = Model().to(torch.bfloat16)
    load_codes_into(model, WeightLoader(place))
    assert model.table(torch.tensor([0])).dtype == torch.bfloat16
    with torch.device("meta"):
        model = Model()
    load_codes_into(model, WeightLoader(place, dtype="float16"))
    assert model.table(torch.tensor([0])).dtype == torch.float16


def test_training_goes_on_or_not_as_before(loader: WeightLoader) -> None:
    model = Model().eval()
    load_codes_into(model, loader)
    assert not model.head.training


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("max_norm", lambda model: setattr(model.table, "max_norm", 1.0)),
        ("hook", lambda model: model.table.register_forward_hook(lambda *_: None)),
        ("a forward of its own", lambda model: setattr(model.table, "forward", lambda ids: ids)),
        ("tied to a parameter", lambda model: setattr(model, "loose", model.table.weight)),
    ],
)
def test_what_may_compute_otherwise_stays_what_it_was(loader: WeightLoader, name: str, change) -> None:  # type: ignore[no-untyped-def]
    model = Model()
    change(model)
    load_codes_into(model, loader)
    assert type(model.table) is torch.nn.Embedding, name
    assert model.head.weight is model.table.weight
    assert torch.equal(model.table.weight, loader["table.weight"])
    assert isinstance(model.inner[0], QuantLinear)


@pytest.mark.parametrize("given", [None, "out/minilm-int8", 5])
def test_what_is_no_loader_is_refused(given: Any) -> None:
    with pytest.raises(InvalidConfig, match=r"loader has to be a WeightLoader, not .*WeightLoader"):
        load_codes_into(Model(), given)


@pytest.mark.parametrize(
    ("name", "value"), [("strict", "no"), ("activations", ["int8"]), ("activations", "int4")]
)
def test_options_of_other_kinds_are_refused_by_name(loader: WeightLoader, name: str, value: Any) -> None:
    with pytest.raises(InvalidConfig, match=name):
        load_codes_into(Model(), loader, **{name: value})


def test_blocks_of_several_types_are_decoded(tmp_path: Path) -> None:
    rows = [row for row in rows_of("int4") if row.name != "inner.0.weight"]
    rng = np.random.default_rng(1)
    whole: dict[str, Any] = {"layer_shape": (40, 40)}
    first = random_row(rng, "inner.0.weight", 24, 40, "int4", group_size=16, row_start=0, **whole)
    second = kept_row(
        "inner.0.weight", rng.standard_normal((16, 40)).astype("<f4"), "float32", row_start=24, **whole
    )
    loader = WeightLoader(write_v2(tmp_path / "w.parquet", [*rows, first, second]))
    model = Model()
    load_codes_into(model, loader)
    assert type(model.inner[0]) is torch.nn.Linear
    assert torch.equal(model.inner[0].weight, loader["inner.0.weight"])


def test_blocks_of_one_type_are_one_matrix(tmp_path: Path) -> None:
    rows = [row for row in rows_of("int4") if row.name != "inner.0.weight"]
    rng = np.random.default_rng(1)
    blocks = [
        random_row(
            rng, "inner.0.weight", 20, 40, "int3", group_size=16, row_start=start, layer_shape=(40, 40)
        )
        for start in (0, 20)
    ]
    loader = WeightLoader(write_v2(tmp_path / "w.parquet", [*rows, *blocks]))
    model = Model()
    load_codes_into(model, loader)
    assert isinstance(model.inner[0], QuantLinear)
    assert torch.equal(model.inner[0].weight.dequantize(), loader["inner.0.weight"])


def test_what_does_not_go_together_is_refused_before_anything_changes(loader: WeightLoader) -> None:
    model = Model()
    model.extra = torch.nn.Linear(3, 3)
    before = model.table.weight
    with pytest.raises(ModelMismatch, match="extra"):
        load_codes_into(model, loader)
    assert model.table.weight is before
    assert load_codes_into(model, loader, strict=False).missing_keys == ["extra.weight", "extra.bias"]


def test_names_that_the_dataset_keeps_apart_have_to_agree(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    head = random_row(rng, "head.weight", 11, 40, "int4", group_size=16)
    loader = WeightLoader(write_v2(tmp_path / "w.parquet", [*rows_of("int4"), head]))
    with pytest.raises(ModelMismatch, match="in the same memory"):
        load_codes_into(Model(), loader)


def test_a_damaged_layer_is_named_and_leaves_the_module_as_it_was(tmp_path: Path) -> None:
    rows = rows_of("int4")
    damaged = bytearray(rows[2].columns["data"])
    damaged[7] ^= 1
    rows[2].columns["data"] = bytes(damaged)
    loader = WeightLoader(write_v2(tmp_path / "w.parquet", rows))
    model = Model()
    before = dict(model.named_modules())
    with pytest.raises(CorruptWeights) as caught:
        load_codes_into(model, loader)
    assert caught.value.layer == "inner.0.weight"
    assert dict(model.named_modules()) == before
    assert {"table.weight", "inner.0.weight"} <= {name for name, _ in model.named_parameters()}
    assert model.head.weight is model.table.weight


def test_a_module_that_is_itself_a_layer_cannot_be_replaced(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    loader = WeightLoader(write_v2(tmp_path / "w.parquet", [random_row(rng, "weight", 8, 40, "int4")]))
    with pytest.raises(InvalidConfig, match="cannot be replaced"):
        load_codes_into(torch.nn.Linear(40, 8, bias=False), loader)
