"""`arrowquant config`, and the names that `--config` accepts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from arrowquant_dist.cli import app
from tests.conftest import CHECKOUT

CONFIGS = CHECKOUT / "configs"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_show_prints_the_file() -> None:
    text = (CONFIGS / "int4.yaml").read_text()
    assert run("config", "show", "int4").stdout == text
    told = json.loads(run("config", "show", "int4", "--json").stdout)
    assert told == {"schema_version": 1, "preset": "int4", "yaml": text}


def test_list_names_each_preset() -> None:
    names = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    title, *shown = run("config", "list").stdout.splitlines()
    assert (title, [line.split()[0] for line in shown if line]) == ("Presets", names)
    told = json.loads(run("config", "list", "--json").stdout)
    assert [preset["name"] for preset in told["presets"]] == names


def test_an_unknown_preset_ends_with_2() -> None:
    done = run("config", "show", "int5")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "did you mean" in done.stderr


def test_quantize_takes_a_preset_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("int4").write_text("quant_type: int2\n")
    planned = json.loads(run("quantize", "minilm", "out", "--config", "int4", "--dry-run", "--json").stdout)
    assert planned["config"]["quant_type"] == "int4"


def test_check_says_what_a_file_comes_to(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("quant_type: int4\nrun: {block_bytes: 1MiB, storage_options: {key: a-secret}}\n")
    done = run("config", "check", str(file), "--json")
    found = json.loads(done.stdout)["config"]
    assert (found["method"], found["group_size"]) == ("mse", 128)
    assert found["run"]["block_bytes"] == 1 << 20
    assert found["run"]["transfer"]["retries"] == 8
    text = run("config", "check", str(file)).stdout
    assert yaml.safe_load(text.partition(":\n")[2]) == found
    assert "secret" not in done.stdout + text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("quant_type: int4\ngroup_size: many\n", "group_size: must be a whole number"),
        ("quant_type: int4\nrun:\n  workers: 0\n", "run.workers: must be from 1"),
        ("overrides:\n  - layers: a\n    group_size: -1\n", "overrides[0].group_size: must be from 0"),
        ("# a comment\noverrides:\n  - {group_size: 1}\n", "overrides[0].layers: is missing"),
        ("\n\ngroupsize: 1\n", "groupsize: is not a known key; the nearest is 'group_size'"),
        ("symmetric: true\noverrides: []\nrun: ]\n", "is not valid YAML"),
    ],
)
def test_check_names_the_key_and_the_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    done = run("config", "check", str(file))
    line = 2 if "many" in text else 3
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr
    assert f"(line {line}" in done.stderr
