"""Each command's --help ends with two examples, which work as they are."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from arrowquant_dist.cli import app
from arrowquant_dist.cli.examples import EXAMPLES

LONG = {"calibrate", "evaluate", "distill"}  # minutes, all of them together


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.output
    return done.stdout


def shown(command: str) -> list[str]:
    """The examples in a command's help, as a shell reads them."""
    text = run(command, "--help").replace("\\\n", " ")
    return [" ".join(line.split()) for line in text.splitlines() if line.startswith("    arrowquant ")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a dataset at out/int8."""
    folder = tmp_path_factory.mktemp("examples")
    run("quantize", "minilm", str(folder / "out" / "int8"))
    return folder


@pytest.mark.parametrize("command", EXAMPLES)
def test_each_help_has_two_examples_within_a_terminal(command: str) -> None:
    assert len(shown(command)) == 2
    assert all(example.startswith(f"arrowquant {command} ") for example in shown(command))
    assert max(map(len, run(command, "--help").splitlines())) <= 80


@pytest.mark.parametrize(
    "command",
    [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in EXAMPLES],
)
def test_the_examples_run(command: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    for example in shown(command):
        assert run(*shlex.split(example)[1:])


@pytest.mark.parametrize("command", EXAMPLES)
def test_each_option_with_a_value_says_its_default_where_it_has_one(command: str) -> None:
    without = {
        "config",
        "hessians",
        "size",
        "min_quality",
        "texts",
        "quantize",
        "activations",
        "compare",
        "html",
    }
    group: Any = get_command(app)
    options = [one for one in group.commands[command].params if one.param_type_name == "option"]
    silent = {
        one.name
        for one in options
        if not (one.is_flag or one.required or "default" in one.help or one.default is not None)
    }
    assert silent <= without
