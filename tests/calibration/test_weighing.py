"""For a size, layers whose errors change more of their block's output are quantized more finely."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AlbertConfig, AlbertModel

from arrowquant_dist import QuantizationConfig, calibrate
from arrowquant_dist.calibration import run
from arrowquant_dist.calibration.layout import CONFIG_PATH
from arrowquant_dist.calibration.worker import SliceWorker
from arrowquant_dist.config import Storage
from arrowquant_dist.errors import ArrowQuantError, StorageError
from arrowquant_dist.models.pair import opened_model
from arrowquant_dist.models.subject import Subject
from arrowquant_dist.models.weighing import weighed_steps
from tests.evaluation.models import SIZES, TEXTS, VOCABULARY, save, save_llama


def steps_of(source: Path) -> dict[str, float]:
    with opened_model(source, Storage(), 1 << 30) as opened:
        subject = Subject.of(opened)
        return weighed_steps(subject, subject.tokens([*TEXTS]))


def scaled(source: Path, factors: dict[str, float]) -> None:
    path = source / "model.safetensors"
    weights = load_file(path)
    for name, factor in factors.items():
        weights[name] = weights[name] * factor
    save_file(weights, path, {"format": "pt"})


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return save_llama(tmp_path / "source")


def test_what_hardly_gets_out_of_a_block_may_be_rounded_more_coarsely(llama: Path) -> None:
    """An attention whose output is a hundredth, beside a feed-forward that is as it was."""
    before = steps_of(llama)
    attention = [f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkv"]
    scaled(llama, {"model.layers.0.self_attn.o_proj.weight": 0.01})
    after = steps_of(llama)
    for name in [*attention, "model.layers.0.self_attn.o_proj.weight"]:
        assert after[name] > 2 * before[name]
    assert after["model.layers.0.mlp.down_proj.weight"] < after[attention[0]]


def test_they_are_of_each_matrix_in_a_block_and_come_to_the_mean_step(llama: Path) -> None:
    found, weights = steps_of(llama), load_file(llama / "model.safetensors")
    assert {*found} == {name for name, value in weights.items() if value.dim() > 1 and ".layers." in name}
    sizes = torch.tensor([float(weights[name].numel()) for name in found])
    logs = torch.tensor([*found.values()]).log()
    assert float((sizes * logs).sum() / sizes.sum()) == pytest.approx(0.0, abs=0.02)


def test_a_weight_that_changes_nothing_has_the_step_of_others(llama: Path) -> None:
    scaled(llama, {"model.layers.1.mlp.up_proj.weight": 0.0})
    assert "model.layers.1.mlp.down_proj.weight" not in steps_of(llama)


def test_of_a_model_without_a_chain_of_blocks_there_are_none(tmp_path: Path) -> None:
    config = AlbertConfig(vocab_size=VOCABULARY, embedding_size=16, **SIZES)
    assert steps_of(save(AlbertModel(config), tmp_path / "source")) == {}


def test_a_calibration_for_a_size_has_them(llama: Path, tmp_path: Path) -> None:
    found = calibrate(llama, tmp_path / "out", [*TEXTS], quantize=QuantizationConfig(size="4.0bits"))
    assert found.config is not None
    steps = {one["layers"]: one["step"] for one in found.config["overrides"] if one.get("method") == "gptq"}
    expected = steps_of(llama)
    names = {name: f"/^{name.replace('.', chr(92) + '.')}$/" for name in expected}
    shared = [steps[names[name]] / step for name, step in expected.items() if names[name] in steps]
    assert len(shared) > 4
    assert max(shared) == pytest.approx(min(shared), rel=1e-3)
    (embedding,) = (layer.parts for layer in found.layers if "embed_tokens" in layer.name)
    assert embedding == ("counts", "sensitivity")


def test_steps_are_chosen_once_and_a_finished_calibration_is_found_without(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = QuantizationConfig(size="4.0bits")

    def stopped(*_: object) -> None:
        raise StorageError("stopped", uri="s3://somewhere")

    with monkeypatch.context() as patch:
        patch.setattr(SliceWorker, "run", stopped)
        with pytest.raises(ArrowQuantError):
            calibrate(llama, tmp_path / "out", [*TEXTS], quantize=asked)
    kept = json.loads((tmp_path / "out" / CONFIG_PATH).read_text())

    monkeypatch.setattr(run, "_chosen", stopped)
    found = calibrate(llama, tmp_path / "out", [*TEXTS], quantize=asked)
    assert found.config is not None
    assert found.config["overrides"] == kept["overrides"]
    assert calibrate(llama, tmp_path / "out", [*TEXTS], quantize=asked) == found
