"""Runs the program within this process, since thousands of cases cannot start it anew each time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from typer.testing import CliRunner

from arrowquant_dist.cli.program import app

_LONGEST_LINE = 6000


@dataclass(frozen=True, slots=True)
class Ending:
    """How a command ended: with one line on stderr, unless it succeeded."""

    code: int
    output: str
    error: str


def run(*arguments: str) -> Ending:
    """Runs a command. Raises AssertionError for anything that no user should see: tracebacks, exit codes without a
    meaning, more than one line."""
    ended: Any = CliRunner().invoke(app, [*arguments])
    if ended.exception is not None and not isinstance(ended.exception, SystemExit):
        raise AssertionError(f"{arguments[0]} raised {type(ended.exception).__name__}") from ended.exception
    error = ended.stderr.strip()
    assert ended.exit_code in (0, 1, 2), (arguments, ended.exit_code)
    assert "Traceback" not in ended.output, (arguments, ended.output[-2000:])
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    if ended.exit_code and arguments[0] == "verify" and not lines:
        assert "NOT sound" in ended.stdout.splitlines()[-1], arguments
    elif ended.exit_code:
        assert len(lines) == 1, (arguments, error[:2000])
        assert error.splitlines()[-1] == lines[0], (arguments, error[:2000])
        assert len(lines[0]) < _LONGEST_LINE, (arguments, len(lines[0]))
        error = lines[0]
    return Ending(ended.exit_code, ended.stdout, error)
