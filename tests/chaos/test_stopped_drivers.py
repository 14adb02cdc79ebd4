"""Real SIGSTOP and SIGCONT for the program's own process, while another process overwrites its run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from arrowquant_dist.verify import verify
from tests.sources import random_weights, save_checkpoint

# The program, which stops itself before or after its first change of that name.
_STOPPING = """
import os, signal, sys
from arrowquant_dist.storage.local import LocalStore

method, path, when = sys.argv[1:4]
own, done = getattr(LocalStore, method), []

def stopping(store, paths, *data):
    is_here = path in paths and not done
    if is_here:
        done.append(True)
        if when == "before":
            os.kill(os.getpid(), signal.SIGSTOP)
    result = own(store, paths, *data)
    if is_here and when == "after":
        os.kill(os.getpid(), signal.SIGSTOP)
    return result

setattr(LocalStore, method, stopping)
sys.argv = ["arrowquant", *sys.argv[4:]]
from arrowquant_dist.cli import app
app()
"""


@pytest.mark.parametrize(
    ("method", "path", "when", "options"),
    [
        ("create", "index.parquet", "before", []),
        pytest.param("create", "manifest.json", "after", [], marks=pytest.mark.slow),
        ("delete_unchanged", "run/commits/00000.json", "before", ["--overwrite"]),
    ],
)
def test_a_process_that_was_stopped_changes_nothing_of_the_run_that_overwrote_its_own(
    tmp_path: Path, method: str, path: str, when: str, options: list[str]
) -> None:
    source = save_checkpoint(tmp_path / "source", random_weights(1, 16, 64, torch.float32))
    target = tmp_path / "target"
    command = ["quantize", source, str(target), "--quant", "int8", "--engine", "inline", "--workers", "1"]
    if options:
        subprocess.run([sys.executable, "-m", "arrowquant_dist", *command], check=True, capture_output=True)
    stopped = subprocess.Popen(
        [sys.executable, "-c", _STOPPING, method, path, when, *command, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _, status = os.waitpid(stopped.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    overwriting = [sys.executable, "-m", "arrowquant_dist", *command, "--overwrite"]
    subprocess.run(overwriting, check=True, capture_output=True)
    theirs = contents(target)
    stopped.send_signal(signal.SIGCONT)
    _, errors = stopped.communicate()
    assert contents(target) == theirs
    assert stopped.returncode == 2
    assert "Traceback" not in errors
    assert len(errors.strip().splitlines()[-1]) < 300
    assert ("overwritten by another" in errors) or ("another run is clearing the target" in errors)
    assert verify(str(target)).problems == ()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
