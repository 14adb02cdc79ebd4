"""`arrowquant config` and what `--config` takes by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from arrowquant_dist.cli import app
from tests.conftest import CHECKOUT

CONFIGS = CHECKOUT / "configs"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_show_prints_the_file() -> None:
    assert run("config", "show", "int4").stdout == (CONFIGS / "int4.yaml").read_text()


def test_list_names_each_preset() -> None:
    shown = run("config", "list").stdout.splitlines()
    assert [line.partition(":")[0] for line in shown] == sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def test_an_unknown_preset_ends_with_2() -> None:
    done = run("config", "show", "int5")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "did you mean" in done.stderr


def test_quantize_takes_a_preset_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("int4").write_text("quant_type: int2\n")
    planned = json.loads(run("quantize", "minilm", "out", "--config", "int4", "--dry-run", "--json").stdout)
    assert planned["config"]["quant_type"] == "int4"
