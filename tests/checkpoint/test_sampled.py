"""A few values of each layer distinguish a model from another one with the same layers, and recognize its copies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.checkpoint.reader import SourceReader
from arrowquant_dist.checkpoint.sampled import SampledWeights
from arrowquant_dist.config import DEFAULT_STORAGE
from arrowquant_dist.errors import InvalidCheckpoint
from tests.sources import random_weights, save_checkpoint

WEIGHTS = random_weights(4, 24, 16, torch.float32) | {"a_scalar": torch.tensor(0.5), "ids": torch.arange(9)}
Weights = dict[str, torch.Tensor]


@pytest.fixture
def sampled(tmp_path: Path) -> SampledWeights:
    """Of WEIGHTS, as they come back from JSON."""
    found = SampledWeights.of(
        open_checkpoint(save_checkpoint(tmp_path / "original", WEIGHTS)), DEFAULT_STORAGE
    )
    return SampledWeights.from_dict(json.loads(json.dumps(found.to_dict())), "calibration.json")


def difference(sampled: SampledWeights, uri: str) -> str | None:
    return sampled.difference(open_checkpoint(uri), DEFAULT_STORAGE)


def cast(weights: Weights, dtype: torch.dtype) -> Weights:
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in weights.items()}


def test_every_float_layer_is_looked_at(sampled: SampledWeights) -> None:
    assert {*sampled.layers} == {*WEIGHTS} - {"ids"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_copy_in_any_dtype_is_the_same_model(
    sampled: SampledWeights, dtype: torch.dtype, tmp_path: Path
) -> None:
    assert difference(sampled, save_checkpoint(tmp_path / "copy", cast(WEIGHTS, dtype))) is None
    twice = cast(cast(WEIGHTS, torch.float16), dtype)
    narrow = SampledWeights.of(
        open_checkpoint(save_checkpoint(tmp_path / "narrow", cast(WEIGHTS, torch.bfloat16))), DEFAULT_STORAGE
    )
    if dtype != torch.bfloat16:  # of equal dtypes, values are
        assert difference(narrow, save_checkpoint(tmp_path / "twice", twice)) is None


def test_a_copy_in_more_files_under_another_name_or_without_some_layers_is_the_same_model(
    sampled: SampledWeights, tmp_path: Path
) -> None:
    folder = tmp_path / "sharded"
    folder.mkdir()
    names = sorted(WEIGHTS)
    files = {name: f"model-0000{1 + i % 3}-of-00003.safetensors" for i, name in enumerate(names)}
    for file in {*files.values()}:
        save_file({name: WEIGHTS[name] for name in names if files[name] == file}, folder / file)
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert difference(sampled, str(folder)) is None
    torch.save({name: WEIGHTS[name] for name in names[2:]}, tmp_path / "pytorch_model.bin")
    assert difference(sampled, str(tmp_path / "pytorch_model.bin")) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layer", sorted({*WEIGHTS} - {"ids"}))
def test_a_model_that_was_trained_further_is_another_one(
    sampled: SampledWeights, layer: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """By a thousandth of its values where they are stored as they were, by a hundredth in 16 bits."""
    step = 1e-3 if dtype == torch.float32 else 1e-2
    trained = cast(WEIGHTS | {layer: WEIGHTS[layer] * (1 + step)}, dtype)
    assert difference(sampled, save_checkpoint(tmp_path / "trained", trained)) == f"other values in {layer}"


def test_other_shapes_and_other_names_are_another_model(sampled: SampledWeights, tmp_path: Path) -> None:
    resized = WEIGHTS | {"layers.0.weight": torch.cat([WEIGHTS["layers.0.weight"], torch.zeros(1, 16)])}
    assert difference(sampled, save_checkpoint(tmp_path / "a", resized)) == "other values in layers.0.weight"
    renamed = {f"model.{name}": value for name, value in WEIGHTS.items()}
    found = difference(sampled, save_checkpoint(tmp_path / "b", renamed))
    assert found is not None
    assert "none of its layers (a_scalar, layers.0.norm.weight" in found


def test_of_many_layers_some_are_looked_at_and_little_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    weights = {f"layers.{i}.weight": torch.full((64,), float(i)) for i in range(2000)}
    read: list[int] = []
    own = SourceReader.read

    def counted(reader: SourceReader, slices: Any) -> Any:
        read.extend(stop - start for _, start, stop in slices)
        return own(reader, slices)

    monkeypatch.setattr(SourceReader, "read", counted)
    found = SampledWeights.of(open_checkpoint(save_checkpoint(tmp_path, weights)), DEFAULT_STORAGE)
    assert len(found.layers) == 512
    assert read == [16] * 512


@pytest.mark.parametrize(
    "value", [None, [], {"a": 1}, {"a": [[2], "int8", "00"]}, {"a": [[2], "float32", "0"]}, {"a": [[2], "x"]}]
)
def test_what_is_no_sample_is_refused(value: object) -> None:
    with pytest.raises(InvalidCheckpoint, match="do not say which model they are of"):
        SampledWeights.from_dict(value, "calibration.json")
