"""Each command's --help ends with two examples, which work as they are."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from arrowquant_dist.cli import app, main
from arrowquant_dist.cli.examples import EXAMPLES, EXIT_CODES

LONG = {"calibrate", "evaluate", "distill"}  # minutes, all of them together


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.output
    return done.stdout


def shown(command: str) -> list[str]:
    return examples_of(run(*command.split(), "--help"))


def examples_of(help_text: str) -> list[str]:
    """The examples in a command's help, as a shell reads them."""
    text = help_text.replace("\\\n", " ")
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
    assert all(
        f"{example} ".startswith(f"arrowquant {command} ".replace("  ", " ")) for example in shown(command)
    )
    assert max(map(len, run(*command.split(), "--help").splitlines())) <= 80
    assert EXIT_CODES in run(*command.split(), "--help")


@pytest.mark.parametrize("command", EXAMPLES)
def test_examples_are_folded_on_a_narrow_terminal_and_can_still_be_copied(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 60
    assert tuple(examples_of(text)) == EXAMPLES[command]


def test_each_command_has_examples() -> None:
    group: Any = get_command(app)
    below = {f"config {name}" for name in group.commands["config"].commands}
    assert {*EXAMPLES} == {"", *group.commands, *below}


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
    for name in command.split():
        group = group.commands[name]
    options = [one for one in group.params if one.param_type_name == "option"]
    silent = {
        one.name
        for one in options
        if not (
            one.is_flag or one.is_eager or one.required or "default" in one.help or one.default is not None
        )
    }
    assert silent <= without
