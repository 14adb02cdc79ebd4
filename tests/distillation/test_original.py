"""A dataset is trained against the model that it was made from, and no other with the same layers and config."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from arrowquant_dist import QuantizationConfig, distill
from arrowquant_dist.config import Storage
from arrowquant_dist.errors import CorruptWeights, ModelMismatch
from arrowquant_dist.models.original import refuse_other_original
from arrowquant_dist.models.pair import opened_dataset, opened_model, sources
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.target.manifest import Manifest
from tests.evaluation.models import TEXTS, quantize, save_bert

CONFIGS = {
    "int8": QuantizationConfig(),
    "int8 a tensor": QuantizationConfig(per_channel=False, group_size=0),
    "int4": QuantizationConfig("int4", per_channel=False, group_size=16, method="rtn"),
    "int3": QuantizationConfig("int3", per_channel=True, symmetric=False),
    "int2": QuantizationConfig("int2", per_channel=False, group_size=16, symmetric=False),
    "fp16": QuantizationConfig("fp16"),
}
Weights = dict[str, torch.Tensor]
LAST = "encoder.layer.1.attention.self.value.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and a dataset of it by each of CONFIGS."""
    made = tmp_path_factory.mktemp("models")
    save_bert(made / "model")
    for name, config in CONFIGS.items():
        quantize(made / "model", made / name, config)
    return made


def look(model: Path, target: Path) -> None:
    storage, store = Storage({}), open_store(str(target))
    with (
        opened_model(model, storage, 1 << 30) as original,
        opened_dataset(target, storage, 1 << 30) as dataset,
    ):
        refuse_other_original(*sources(original, dataset), Manifest.read(store), ())


def changed(model: Path, copy: Path, change: Callable[[Weights], object], dtype: torch.dtype) -> Path:
    shutil.copytree(model, copy)
    weights = load_file(model / "model.safetensors")
    change(weights)
    cast = {name: value.to(dtype) for name, value in weights.items()}
    save_file(cast, copy / "model.safetensors", {"format": "pt"})
    return copy


@pytest.mark.parametrize("name", CONFIGS)
def test_the_model_and_its_copy_in_16_bits_are_taken(folder: Path, name: str, tmp_path: Path) -> None:
    look(folder / "model", folder / name)
    copy = changed(folder / "model", tmp_path / "copy", lambda _: None, torch.bfloat16)
    look(copy, folder / name)


@pytest.mark.parametrize("name", CONFIGS)
def test_one_in_which_a_rank_of_one_was_added_to_a_projection_is_refused(
    folder: Path, name: str, tmp_path: Path
) -> None:
    """A fiftieth of the weights."""

    def change(weights: Weights) -> None:
        weight = weights[LAST]
        torch.manual_seed(1)
        added = torch.outer(torch.randn(len(weight)), torch.randn(weight.shape[1]))
        weight += added * (0.02 * weight.norm() / added.norm())

    tuned = changed(folder / "model", tmp_path / "tuned", change, torch.float32)
    with pytest.raises(ModelMismatch, match=f"was not made from the weights of .*other values in {LAST}"):
        look(tuned, folder / name)


def test_one_with_other_norms_is_refused_before_anything_is_trained(folder: Path, tmp_path: Path) -> None:
    tuned = changed(
        folder / "model",
        tmp_path / "tuned",
        lambda weights: weights["encoder.layer.0.output.LayerNorm.bias"].add_(1e-3),
        torch.float32,
    )
    with pytest.raises(ModelMismatch, match=r"other values in encoder\.layer\.0\.output\.LayerNorm\.bias"):
        distill(tuned, folder / "int2", tmp_path / "out", TEXTS)
    assert not (tmp_path / "out").exists()


def test_a_report_that_was_changed_says_nothing(folder: Path, tmp_path: Path) -> None:
    quantize(folder / "model", tmp_path / "target", CONFIGS["int2"])
    file = tmp_path / "target" / "report" / "layers.parquet"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptWeights, match="not what the manifest lists"):
        look(folder / "model", tmp_path / "target")
