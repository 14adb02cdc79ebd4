"""`arrowquant distill`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from arrowquant_dist import QuantizationConfig
from arrowquant_dist.cli import app
from tests.evaluation.models import TEXTS, quantize, save_bert

INT2 = QuantizationConfig("int2", per_channel=False, group_size=16, symmetric=False)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert") / "source")


@pytest.fixture(scope="module")
def target(source: Path) -> Path:
    return quantize(source, source.parent / "target", INT2)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS))
    return path


def test_it_tells_of_progress_and_a_second_time_that_all_is_there(
    source: Path, target: Path, texts: Path, tmp_path: Path
) -> None:
    command = "distill", source, target, tmp_path / "out", "--texts", texts, "--steps", 4
    result = run(*command)
    assert result.exit_code == 0, result.output
    assert f"written to {tmp_path / 'out'}: loss of held-back texts" in result.stdout
    assert "distill: step 4 of 4, loss " in result.stderr
    result = run(*command, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["already_finished"], found["steps"], found["failed_at"]) == (True, 4, None)
    assert {*found["losses"]} == {"0", "4"}


def test_bad_input_is_one_sentence_and_exit_code_2(
    source: Path, target: Path, texts: Path, tmp_path: Path
) -> None:
    few = tmp_path / "few.txt"
    few.write_text("\n".join(TEXTS[:5]))
    for command, said in (
        ((source, target, tmp_path / "out", "--texts", few), "5 texts, too few to train with"),
        ((source, target, target, "--texts", texts), "choose another OUT"),
        ((source, tmp_path / "none", tmp_path / "out", "--texts", texts), "no finished dataset"),
    ):
        result = run("distill", *command)
        assert result.exit_code == 2, result.output
        assert said in result.stderr
        assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()
