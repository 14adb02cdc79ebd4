"""`arrowquant distill` is killed by kill -9 when it opens certain files, and called again."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from arrowquant_dist.verify import verify
from tests.distillation.test_distill import INT2
from tests.evaluation.models import TEXTS, quantize, save_bert
from tests.integration.program import run

_STEPS = "450"  # a state is saved after 200 and 400 of them, and after the last

# Kills its own process as it opens a file to write for the nth time that has these words in its path.
_KILLED = """
import os, signal, sys
left = [{times}]
def killed(event, arguments):
    if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR) and {words!r} in str(arguments[0]):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(killed)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a model, a dataset of it, texts, and what a training makes that nothing disturbs."""
    folder = tmp_path_factory.mktemp("distill")
    quantize(save_bert(folder / "model"), folder / "quantized", INT2)
    (folder / "texts.txt").write_text("\n".join(TEXTS))
    assert run(*command(folder, "undisturbed")).returncode == 0
    return folder


def command(folder: Path, out: str) -> list[str]:
    places = [str(folder / name) for name in ("model", "quantized", out)]
    return ["distill", *places, "--texts", str(folder / "texts.txt"), "--steps", _STEPS]


def hashes(target: Path) -> list[str]:
    return [part["hash"] for part in json.loads((target / "manifest.json").read_text())["parts"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "times"),
    [
        ("distillation/state-", 2),
        ("state.json", 2),
        ("weights/shard=00000/", 1),
        ("run/commits/", 1),
        ("manifest.json", 1),
    ],
)
def test_a_training_that_was_killed_ends_in_the_same_dataset_by_the_same_command(
    place: Path, words: str, times: int
) -> None:
    out = f"killed-{words.replace('/', '-')}"
    ended = run(*command(place, out), before=_KILLED.format(words=words, times=times))
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert not (place / out / "manifest.json").exists()
    again = run(*command(place, out))
    assert again.returncode == 0, again.stderr
    assert hashes(place / out) == hashes(place / "undisturbed")
    assert not verify(str(place / out)).problems
    assert not (place / out / "run" / "distillation").exists()
