"""The program as a whole: what it imports, how it ends, and what it prints where."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from arrowquant_dist.cli import app, main
from arrowquant_dist.cli.examples import Command
from arrowquant_dist.cli.outcome import outcome
from arrowquant_dist.cli.telling import LogFormat, Telling
from arrowquant_dist.errors import (
    ArrowQuantError,
    CorruptWeights,
    IncompleteDataset,
    InvalidCheckpoint,
    InvalidConfig,
    NotFound,
    PartialRun,
    StorageError,
    TargetConflict,
    UnquantizableWeights,
)
from tests.guides import TEXTS

HEAVY = {
    "torch",
    "ray",
    "pyarrow",
    "numba",
    "transformers",
    "numpy",
    "pandas",
    "rich",
    "jinja2",
    "yaml",
    "fsspec",
}
GOLDEN = Path(__file__).parents[1] / "report" / "golden_report.json"
COMMANDS = (
    *(
        "quantize",
        "inspect",
        "verify",
        "report",
        "evaluate",
        "calibrate",
        "distill",
        "validate",
        "export",
        "vllm",
        "config",
    ),
)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], check=False, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    "arguments", [("--help",), ("--version",), *((command, "--help") for command in COMMANDS)]
)
def test_help_and_version_import_nothing_heavy(arguments: tuple[str, ...]) -> None:
    code = """
import sys
from arrowquant_dist.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
print("MODULES", *{name.partition(".")[0] for name in sys.modules})
"""
    done = python(code, *arguments)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split("MODULES")[1].split())
    assert "typer" in loaded
    assert not loaded & HEAVY


def test_help_names_every_command() -> None:
    shown = run("--help").stdout
    assert all(f"\n  {command} " in shown for command in COMMANDS)


def test_each_help_ends_with_the_exit_codes() -> None:
    shown = [run(*command, "--help").stdout for command in ((), *((name,) for name in COMMANDS))]
    assert all("0: done; 1: failed; 2: bad input or usage; 130: interrupted" in text for text in shown)


def test_the_options_are_those_that_readme_and_guides_have() -> None:
    option = re.compile(r"(?<![\w-])--[a-z][\w-]*")
    own = {
        name
        for command in ((), *((name,) for name in COMMANDS))
        for name in option.findall(run(*command, "--help").stdout)
    }
    about = [text for guide, text in TEXTS.items() if not guide.startswith("cluster/")]
    written = set(option.findall("".join(about)))
    assert written - own == {"--model-loader-extra-config"}  # vLLM's
    assert own - written == {"--version"}


def test_the_module_is_the_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "arrowquant_dist", "--help"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("Usage: arrowquant ")
    assert all(f"\n  {command} " in done.stdout for command in COMMANDS)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("no-such-command",),
        ("quantize",),
        ("quantize", "a"),
        ("quantize", "a", "b", "--no-such-option"),
        ("quantize", "a", "b", "--workers", "many"),
        ("report",),
        ("report", "a", "b"),
    ],
)
def test_wrong_usage_ends_with_2(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (InvalidConfig, 2),
        (NotFound, 2),
        (InvalidCheckpoint, 2),
        (UnquantizableWeights, 2),
        (TargetConflict, 2),
        (CorruptWeights, 1),
        (IncompleteDataset, 1),
        (PartialRun, 1),
        (StorageError, 1),
    ],
)
@pytest.mark.parametrize("form", ["text", "json"])
def test_an_error_is_one_line_and_its_exit_code(
    kind: type[ArrowQuantError], code: int, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = kind("went wrong;\n  do this", layer="a\x1b[2Jb", uri="s3://b/x\x9b")
    with pytest.raises(typer.Exit) as raised, outcome(as_json=form == "json"):
        raise error
    assert raised.value.exit_code == code
    out, err = capsys.readouterr()
    assert not {"\x1b", "\x9b"} & set(out + err)
    if form == "json":
        assert json.loads(out) == {"schema_version": 1, "error": error.to_dict()}
        assert err == ""
    else:
        assert out == ""
        assert err == "error: layer 'a\\x1b[2Jb', s3://b/x\\x9b: went wrong; do this\n"


@pytest.mark.parametrize(
    "arguments", [("report", "a", "b"), ("verify",), ("verify", "a", "--nothing"), ("nothing",)]
)
def test_wrong_usage_is_json_with_json(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--json"])
    out, err = capsys.readouterr()
    assert (end.value.code, err) == (2, "")
    error = json.loads(out)["error"]
    assert error["kind"] == "usage"
    assert len(error["message"]) > 10
    assert error.keys() == CorruptWeights("x").to_dict().keys()


@pytest.mark.parametrize("form", [("--log-format", "json"), ("--log-format=json",)])
def test_wrong_usage_is_a_json_line_where_logs_are(
    form: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["verify", *form, "a", "--nothing"])
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert (end.value.code, out, json.loads(line)["event"]) == (2, "", "error")
    assert json.loads(line)["kind"] == "usage"


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), RuntimeError("while a class is made")])
def test_ctrl_c_before_a_command_begins_ends_like_any_other(
    raised: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> None:
        raise raised from KeyboardInterrupt()

    monkeypatch.setattr(Command, "parse_args", stop)
    for form, told in {"": "error: interrupted", "--json": '"kind": "interrupted"'}.items():
        with pytest.raises(SystemExit) as end:
            main(["verify", "a", *form.split()])
        out, err = capsys.readouterr()
        assert end.value.code == 130
        assert told in (out if form else err)
        assert "Traceback" not in err


def test_wrong_usage_is_an_error_like_any_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["verify", "a", "--\x1b[31mred"])
    usage, hint, empty, error = capsys.readouterr().err.splitlines()
    assert usage.startswith("Usage: arrowquant verify ")
    assert (hint, empty) == ("Try 'arrowquant verify --help' for help.", "")
    assert error == r"error: No such option: --\x1b[31mred"


def test_a_command_without_arguments_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["config"])
    assert end.value.code == 2
    assert "  Examples:\n    arrowquant config show int4\n" in capsys.readouterr().err


def test_an_error_is_a_json_line_where_logs_are(capsys: pytest.CaptureFixture[str]) -> None:
    telling = Telling(log_format=LogFormat.JSON)
    with pytest.raises(typer.Exit), outcome(as_json=False, telling=telling):
        raise CorruptWeights("went wrong", layer="a")
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert (out, json.loads(line)["event"], json.loads(line)["layer_name"]) == ("", "error", "a")


@pytest.mark.parametrize(
    ("shell", "word"), [("bash", "COMPREPLY"), ("zsh", "#compdef arrowquant"), ("fish", "complete --command")]
)
def test_the_completion_of_each_shell_is_shown(
    shell: str, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_ARROWQUANT_COMPLETE", "")  # so that it is as before in the end
    with pytest.raises(SystemExit) as end:
        main(["--show-completion", shell])
    shown = capsys.readouterr().out
    assert not end.value.code
    assert word in shown
    assert "_ARROWQUANT_COMPLETE" in shown


@pytest.mark.parametrize("arguments", [("--show-completion", "csh"), ("--install-completion", "zsh")])
def test_completion_is_not_that_of_another_shell(
    arguments: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: Invalid value: {arguments[0]}: ")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("quantize minilm out --quant int", ["int8", "int4", "int3", "int2"]),
        ("quantize minilm out --method g", ["gptq"]),
        ("calibrate minilm out --engine i", ["inline"]),
        ("export t out --format g", ["gguf"]),
        ("inspect minilm --sort s", ["source", "size", "stored"]),
        ("verify t --log-format j", ["json"]),
    ],
)
def test_words_of_a_choice_are_completed(words: str, found: list[str]) -> None:
    typed = {"_ARROWQUANT_COMPLETE": "complete_bash", "COMP_WORDS": f"arrowquant {words}"}
    typed["COMP_CWORD"] = str(len(words.split()))
    done = CliRunner().invoke(app, [], prog_name="arrowquant", env=typed)
    assert done.stdout.split() == found


@pytest.mark.parametrize(
    "words", ["quantize minilm out --config", "calibrate minilm out --quantize", "config show"]
)
def test_presets_are_completed_where_a_config_is_taken(words: str) -> None:
    typed = {"_ARROWQUANT_COMPLETE": "complete_bash", "COMP_WORDS": f"arrowquant {words} int4"}
    typed["COMP_CWORD"] = str(len(words.split()) + 1)
    done = CliRunner().invoke(app, [], prog_name="arrowquant", env=typed)
    assert done.stdout.split() == ["int4", "int4-gptq"]


def test_an_error_that_nobody_meant_keeps_its_traceback() -> None:
    code = "from arrowquant_dist.cli.outcome import outcome\nwith outcome(as_json=False): {}['x']"
    done = python(code)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "KeyError: 'x'" in done.stderr


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = """
import sys
from arrowquant_dist.cli.outcome import outcome
from arrowquant_dist.report.terminal import print_text
import typer
app = typer.Typer(pretty_exceptions_enable=False)
@app.command()
def flood() -> None:
    with outcome(as_json=True):
        for _ in range(10000):
            print_text(sys.stdout, "y" * 99)
app()
"""
    read_end, write_end = os.pipe()
    with subprocess.Popen([sys.executable, "-c", code], stdout=write_end, stderr=subprocess.PIPE) as process:
        os.close(write_end)
        os.read(read_end, 10)
        os.close(read_end)
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait() == 1


def test_an_ascii_terminal_gets_replacements_and_no_failure(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.json").write_bytes(GOLDEN.read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "arrowquant_dist", "report", str(tmp_path)],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert b">=0.9999" in done.stdout
    assert done.stderr == b""
