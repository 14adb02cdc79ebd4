"""The guide's way on the command line: quantize with the config for it, export, and open the folder with
transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from arrowquant_dist.cli import app
from tests.export.models import as_decoded, difference, opened, small_bert, small_llama

CONFIGS = Path(__file__).parents[3] / "configs"


def _run(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == code, done.output
    return done.stdout


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_of_4_bits_are_written_as_they_are_and_opened(dtype: str, tmp_path: Path) -> None:
    model = small_llama(dtype, hidden_size=256, intermediate_size=384, num_attention_heads=8)
    model.save_pretrained(tmp_path / "source")
    _run("quantize", tmp_path / "source", tmp_path / "w4", "--config", CONFIGS / "vllm-w4a16.yaml")
    shown = json.loads(
        _run("export", tmp_path / "w4", tmp_path / "out", "--format", "compressed-tensors", "--json")
    )
    assert shown["export"]["notes"] == []
    assert difference(opened(tmp_path / "out"), as_decoded(model, str(tmp_path / "w4"))) <= 1e-5
    again = _run("export", tmp_path / "w4", tmp_path / "out", "--format", "compressed-tensors")
    assert "is finished already" in again
    settings = json.loads((tmp_path / "out/config.json").read_bytes())["quantization_config"]
    assert settings == {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "format": "pack-quantized",
                "weights": {
                    "num_bits": 4,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "group",
                    "group_size": 128,
                },
            }
        },
        "ignore": ["lm_head"],
    }


@pytest.mark.parametrize("options", [[], ["--activations", "int8"]], ids=["W8A16", "W8A8"])
def test_weights_of_8_bits_too_with_int8_activations_or_without(options: list[str], tmp_path: Path) -> None:
    model = small_bert("bfloat16")
    model.save_pretrained(tmp_path / "source")
    _run("quantize", tmp_path / "source", tmp_path / "w8", "--config", CONFIGS / "vllm-w8a8.yaml")
    _run("export", tmp_path / "w8", tmp_path / "out", "--format", "compressed-tensors", *options)
    found = opened(tmp_path / "out", dequantize=bool(options))
    assert difference(found, as_decoded(model, str(tmp_path / "w8"))) <= 1e-5


def test_a_refusal_is_one_line_and_exit_code_2_and_nothing_is_there(tmp_path: Path) -> None:
    small_bert().save_pretrained(tmp_path / "source")
    _run("quantize", tmp_path / "source", tmp_path / "int8")
    done = CliRunner().invoke(
        app, ["export", str(tmp_path / "int8"), str(tmp_path / "out"), "--format", "compressed-tensors"]
    )
    assert done.exit_code == 2
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "embeddings.word_embeddings.weight" in line
    assert "--requantize" in line
    assert not (tmp_path / "out").exists()
    _run("export", tmp_path / "int8", tmp_path / "out", "--format", "compressed-tensors", "--requantize")
    opened(tmp_path / "out")


def test_a_source_without_requantize_is_refused(tmp_path: Path) -> None:
    small_bert().save_pretrained(tmp_path / "source")
    _run("quantize", tmp_path / "source", tmp_path / "int8")
    words = ["--format", "compressed-tensors", "--source", tmp_path / "source"]
    _run("export", tmp_path / "int8", tmp_path / "out", *words, code=2)
