"""Runs `arrowquant` as a process of its own or in this one, makes checkpoints for it, and looks at what it left."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from typer.testing import CliRunner

from arrowquant_dist.cli import app
from tests.waiting import until

# If pytest was started in the background, the shell made it and all that it starts ignore SIGINT.
_MAIN = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
{before}
from arrowquant_dist.cli import main
main()
"""


def start(*arguments: object, before: str = "") -> subprocess.Popen[str]:
    """Starts the program. before: Python code that its process runs first."""
    code = _MAIN.format(before=before)
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Waits until the process has ended; kills it if waiting fails."""
    try:
        out, err = process.communicate()
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run(*arguments: object, before: str = "") -> subprocess.CompletedProcess[str]:
    return end(start(*arguments, before=before))


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs the program in this process: the same, except for what the start and the end of a process add."""
    words = [*map(str, arguments)]
    result = CliRunner().invoke(app, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return subprocess.CompletedProcess(words, result.exit_code, result.stdout, result.stderr)


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Returns as soon as `happened` is true; fails if the process ends first."""

    def has_happened() -> bool:
        if happened():
            return True
        assert process.poll() is None, f"ended before it was interrupted: {process.communicate()}"
        return False

    until(has_happened)


def commits(target: Path) -> int:
    return len([*(target / "run" / "commits").glob("*.json")])


def is_published(target: Path) -> bool:
    return (target / "manifest.json").exists()


def parts(target: Path) -> set[str]:
    return {str(f.relative_to(target)) for f in (target / "weights").rglob("*") if f.is_file()}


def write_checkpoint(path: Path, layers: int, rows: int, columns: int) -> Path:
    """Writes `layers` float32 matrices with a bias each."""
    rng = np.random.default_rng(5)
    tensors = {
        f"layers.{i}.weight": rng.standard_normal((rows, columns), np.float32) * 0.02 for i in range(layers)
    }
    biases = {f"layers.{i}.bias": np.full(rows, 0.5 * i, np.float32) for i in range(layers)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({**tensors, **biases}, path)
    return path
