"""`arrowquant calibrate`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from arrowquant_dist.cli import app
from tests.evaluation.models import TEXTS, save_sentence_model


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sentence_model(tmp_path_factory.mktemp("sentences") / "source")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS))
    return path


def test_what_it_writes_is_what_quantize_takes(source: Path, texts: Path, tmp_path: Path) -> None:
    config, out = tmp_path / "config.yaml", tmp_path / "out"
    settings = {"quant_type": "int4", "per_channel": False, "group_size": 16, "method": "gptq"}
    config.write_text(json.dumps(settings))
    result = run("calibrate", source, out, "--texts", texts, "--quantize", config)
    assert result.exit_code == 0, result.output
    assert "25 texts" in result.stdout
    # behind the model of transformers, where nobody looks at inputs
    assert "not calibrated: 2_Dense.linear.weight; the input of such a layer is one pooled" in result.stdout
    assert "no input reached" not in result.stdout
    assert "calibrate: part 1 of 4" in result.stderr
    result = run("quantize", source, tmp_path / "target", "--config", config, "--hessians", out)
    assert result.exit_code == 0, result.output
    notes = result.stdout[result.stdout.index("mse instead of gptq") :]
    assert "2_Dense.linear.weight" in notes
    assert "attention" not in notes


def test_json_is_one_document(source: Path, texts: Path, tmp_path: Path) -> None:
    result = run("calibrate", source, tmp_path / "out", "--texts", texts, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["texts"]["count"], found["sequential"], found["config"]) == (25, False, None)
    written = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert {*written.pop("weights")} >= {layer["name"] for layer in written["layers"]}
    names = [layer["name"] for layer in written["layers"]]
    assert [layer["layer_name"] for layer in found["layers"]] == names
    assert {**written, "layers": found["layers"], "out": found["out"], "schema_version": 1} == found
    assert found["unseen"] == ["2_Dense.linear.weight"]


def test_what_is_there_is_refused_with_2(source: Path, texts: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("")
    result = run("calibrate", source, tmp_path / "out", "--texts", texts)
    assert result.exit_code == 2
    assert "mine.txt" in result.stderr
