"""Tensors without values, wherever they are in a source, are in the dataset like any other, and given back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import save

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, WeightLoader
from arrowquant_dist.config import LayerOverride
from arrowquant_dist.report.render import load_report
from arrowquant_dist.verify import verify
from tests.integration.v1 import write_v1
from tests.sources import save_checkpoint

Tensors = dict[str, torch.Tensor]


def matrix() -> torch.Tensor:
    """Constant, which every kind of scale gives back."""
    return torch.full((8, 16), 3.0)


SOURCES: dict[str, Tensors] = {
    "a vector first": {"a": torch.empty(0), "b": matrix()},
    "a matrix without rows first": {"a": torch.empty(0, 7), "b": matrix()},
    "a matrix without columns first": {"a": torch.empty(7, 0), "b": matrix()},
    "between others": {"a": matrix(), "b": torch.empty(0, 3), "c": matrix() + 1, "d": torch.empty(4, 0, 3)},
    "last": {"a": matrix(), "b": torch.empty(0, dtype=torch.bfloat16)},
    "alone": {"a": torch.empty(0)},
    "nothing else": {
        "a": torch.empty(0, 7),
        "b": torch.empty(3, 0, 2, dtype=torch.float64),
        "c": torch.empty(0, dtype=torch.int64),
        "experts": torch.empty(0, 4, 4),
    },
}


def as_safetensors(folder: Path, tensors: Tensors) -> str:
    return save_checkpoint(folder, tensors)


def as_pickle(folder: Path, tensors: Tensors) -> str:
    folder.mkdir()
    torch.save(tensors, folder / "pytorch_model.bin")
    return str(folder)


def as_v1(folder: Path, tensors: Tensors) -> str:
    folder.mkdir()
    wide = {name: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for name, t in tensors.items()}
    write_v1(folder / "weights.parquet", wide)
    return str(folder)


def as_objects(_folder: Path, tensors: Tensors) -> str:
    """At a place that is read ahead by threads, as object stores are."""
    with fsspec.open("memory://empty-layers/model.safetensors", "wb") as file:
        file.write(save(tensors))
    return "memory://empty-layers"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.mark.parametrize("write", [as_safetensors, as_pickle, as_v1, as_objects])
@pytest.mark.parametrize("tensors", SOURCES.values(), ids=SOURCES)
def test_tensors_without_values_go_through(
    write: Callable[[Path, Tensors], str], tensors: Tensors, tmp_path: Path, target: Path
) -> None:
    ArrowQuantizer(QuantizationConfig()).quantize(write(tmp_path / "source", tensors), str(target))
    check(target, tensors)


@pytest.mark.parametrize(
    "config",
    [
        QuantizationConfig("int4", per_channel=False, group_size=0),
        QuantizationConfig("int2", per_channel=False, group_size=4, symmetric=False),
        QuantizationConfig(mixed_precision_layers=["a"]),
        QuantizationConfig("fp16"),
        QuantizationConfig("fp16", overrides=[LayerOverride("*", row_dims=2), LayerOverride("b", "int4")]),
    ],
    ids=["per tensor", "groups", "asked to be kept", "fp16", "overrides"],
)
def test_whatever_the_config_asks_of_them(config: QuantizationConfig, tmp_path: Path, target: Path) -> None:
    tensors = {"a": torch.empty(0, 7), "b": matrix(), "c": torch.empty(2, 0, 3)}
    ArrowQuantizer(config).quantize(save_checkpoint(tmp_path / "source", tensors), str(target))
    check(target, tensors)


def test_a_dataset_of_them_is_a_source_as_it_is_and_as_bare_files(tmp_path: Path, target: Path) -> None:
    tensors = {"a": torch.empty(0, 7), "b": torch.empty(3, 0, 2)}
    ArrowQuantizer(QuantizationConfig()).quantize(save_checkpoint(tmp_path / "source", tensors), str(target))
    for number, source in enumerate((target, target / "weights")):
        again = tmp_path / f"again{number}"
        ArrowQuantizer(QuantizationConfig()).quantize(str(source), str(again))
        check(again, tensors)


def check(target: Path, tensors: Tensors) -> None:
    """The dataset is sound, its report can be read, and the loader gives every tensor in shape and dtype."""
    assert verify(str(target)).problems == ()
    report = load_report(str(target))
    assert report.totals.params == sum(tensor.numel() for tensor in tensors.values())
    empty = {name for name, tensor in tensors.items() if not tensor.numel()}
    assert empty <= {layer.layer_name for layer in report.kept_layers}
    with WeightLoader(str(target)) as loader:
        streamed = dict(loader)
        assert streamed.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert streamed[name].shape == loader[name].shape == loader.read(name, slice(0, 9)).shape
            torch.testing.assert_close(streamed[name], tensor, check_dtype=False)
