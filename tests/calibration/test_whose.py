"""Statistics are accepted for the model that they were made from, wherever a copy of it is, and refused for every other
one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig, calibrate
from arrowquant_dist.cli import main
from arrowquant_dist.driver.run import plan_only
from arrowquant_dist.errors import InvalidConfig
from tests.evaluation.models import TEXTS, save_llama

RUN = RunConfig(engine="inline", workers=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama") / "source")


@pytest.fixture(scope="module")
def config(model: Path, tmp_path_factory: pytest.TempPathFactory) -> QuantizationConfig:
    out = str(tmp_path_factory.mktemp("statistics") / "out")
    calibrate(model, out, [*TEXTS], run=RUN)
    return QuantizationConfig("int4", per_channel=False, group_size=16, method="gptq", hessians=out)


def loaded(model: Path, dtype: torch.dtype) -> LlamaForCausalLM:
    found: LlamaForCausalLM = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    return found


def test_a_float32_copy_in_many_files_takes_them(
    model: Path, config: QuantizationConfig, tmp_path: Path
) -> None:
    loaded(model, torch.float32).save_pretrained(tmp_path / "copy", max_shard_size="40KB")
    assert len([*(tmp_path / "copy").glob("*.safetensors")]) > 1
    ArrowQuantizer(config, RUN).quantize(tmp_path / "copy", tmp_path / "out")


def test_a_model_that_was_trained_further_is_refused_before_anything_is_written(
    model: Path, config: QuantizationConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the same config, layers and dtype, in one of whose projections a rank of one was added."""
    tuned = loaded(model, torch.bfloat16)
    weight = tuned.model.layers[1].self_attn.v_proj.weight
    with torch.no_grad():
        weight += 0.01 * torch.outer(torch.randn(len(weight)), torch.randn(weight.shape[1])).bfloat16()
    tuned.save_pretrained(tmp_path / "tuned")
    arguments = [str(tmp_path / "tuned"), str(tmp_path / "out"), "--method", "gptq", "--quant", "int4"]
    arguments += ["--hessians", str(config.hessians)]
    with pytest.raises(SystemExit, match="2"):
        main(["quantize", *arguments])
    error = capsys.readouterr().err
    assert f"{config.hessians}/calibration.json: hessians were collected from other weights than" in error
    assert "other values in model.layers.1.self_attn.v_proj.weight" in error
    assert not (tmp_path / "out").exists()
    with pytest.raises(InvalidConfig, match="collected from other weights"):
        plan_only(str(tmp_path / "tuned"), str(tmp_path / "out"), config, RUN)


def test_the_record_has_the_values_and_people_are_not_shown_them(config: QuantizationConfig) -> None:
    record = json.loads(Path(str(config.hessians), "calibration.json").read_text())
    assert record["weights"]["model.norm.weight"][:2] == [[32], "bfloat16"]
