"""Standard streams that are closed, full or gone: the work is done, or one line says why not. There is no traceback,
and no output in a file that happens to have the stream's number."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from arrowquant_dist.cli.streams import spell_out
from arrowquant_dist.loader import WeightLoader
from tests.conftest import CHECKOUT

PROGRAM = f"{sys.executable} -m arrowquant_dist"


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """With bash, which opens and closes descriptors as a person would; what is closed inside stays captured outside."""
    return subprocess.run(
        ["bash", "-c", line],
        check=False,
        capture_output=True,
        text=True,
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    layers = {f"layer{i}.weight": torch.full((64, 64), float(i + 1)) for i in range(40)}
    save_file(layers, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def target(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("target") / "t"
    done = shell(f"{PROGRAM} quantize {source} {place} --engine inline")
    assert done.returncode == 0, done.stderr
    return place


# What is asked of one command holds for all, which end in one place: a covering set is quick.
@pytest.mark.parametrize(
    "closed", [pytest.param(">&-", marks=pytest.mark.slow), "<&- >&- 2>&-", "2>/dev/full", ">&- --json"]
)
def test_the_work_is_done_whatever_is_closed(source: Path, tmp_path: Path, closed: str) -> None:
    done = shell(f"{PROGRAM} quantize {source} {tmp_path}/t --engine inline {closed}")
    assert done.returncode == 0
    assert "Traceback" not in done.stdout + done.stderr
    for name, weight in WeightLoader(tmp_path / "t"):
        expected = float(name.removeprefix("layer").removesuffix(".weight")) + 1
        torch.testing.assert_close(weight, torch.full((64, 64), expected))
    parts = [
        path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix == ".parquet"
    ]
    assert all(part[:4] == part[-4:] == b"PAR1" for part in parts)


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("90.9 MB → 21.1 MB", "90.9 MB ->21.1 MB"),
        ("≥ 0.9999  ───", ">=0.9999  ---"),
        ("12 × encoder…bias – 2", "12 x encoder~bias - 2"),
        ("größe\u202e\U0001f600", r"gr\xf6\xdfe\u202e\U0001f600"),
    ],
)
def test_what_an_encoding_lacks_is_spelled_out_in_as_many_columns(
    text: str, spelled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="ascii")
    with monkeypatch.context() as inside:
        inside.setattr(sys, "stdout", stream)
        spell_out()
    stream.write(text)
    stream.flush()
    assert written.getvalue().decode("ascii") == spelled


@pytest.mark.parametrize(
    ("command", "closed"),
    [
        ("inspect {source}", ">&-"),
        pytest.param("inspect {source}", "<&- 2>&-", marks=pytest.mark.slow),
        pytest.param("verify {target}", ">&-", marks=pytest.mark.slow),
        ("verify {target}", "<&- 2>&-"),
        ("report {target}", ">&-"),
        pytest.param("report {target}", "<&- 2>&-", marks=pytest.mark.slow),
    ],
)
def test_looking_ends_as_ever_whatever_is_closed(
    source: Path, target: Path, command: str, closed: str
) -> None:
    done = shell(f"{PROGRAM} {command.format(source=source, target=target)} {closed}")
    assert done.returncode == 0
    assert not [line for line in done.stderr.splitlines() if not line.startswith("verify: ")]
    assert bool(done.stdout) == (">&-" not in closed.replace("2>&-", ""))


@pytest.mark.parametrize("closed", [">&-", pytest.param("2>&-", marks=pytest.mark.slow), "2>/dev/full"])
def test_bad_input_still_ends_with_2(tmp_path: Path, closed: str) -> None:
    done = shell(f"{PROGRAM} verify {tmp_path}/nothing {closed}")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == (closed == ">&-")


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        pytest.param("--version", marks=pytest.mark.slow),
        pytest.param("inspect {target}", marks=pytest.mark.slow),
        "verify {target}",
        pytest.param("report {target}", marks=pytest.mark.slow),
        "report {target} --json",
    ],
)
def test_a_full_disk_behind_stdout_is_one_line(target: Path, command: str) -> None:
    done = shell(f"{PROGRAM} {command.format(target=target)} > /dev/full")
    assert done.returncode == 1
    (line,) = (line for line in done.stderr.splitlines() if not line.startswith("verify: "))
    assert line.startswith("error: cannot write the output (No space left on device)")


def test_a_quantized_model_is_there_though_its_report_could_not_be_shown(
    source: Path, tmp_path: Path
) -> None:
    done = shell(f"{PROGRAM} quantize {source} {tmp_path}/t --engine inline --json > /dev/full")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: cannot write the output")
    assert json.loads(shell(f"{PROGRAM} verify {tmp_path}/t --json").stdout)["is_sound"]


@pytest.mark.parametrize(
    "command", ["inspect {target}", pytest.param("report {target} --json", marks=pytest.mark.slow), "--help"]
)
def test_a_reader_that_has_had_enough_hears_no_more(target: Path, command: str) -> None:
    done = shell(f"{PROGRAM} {command.format(target=target)} | head -1")
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_progress_that_nobody_reads_does_not_end_the_work(source: Path, tmp_path: Path) -> None:
    done = shell(f"{PROGRAM} quantize {source} {tmp_path}/t --engine inline 2> >(exec true) && echo $?")
    assert done.stdout.splitlines()[-1] == "0"
    assert len(WeightLoader(tmp_path / "t")) == 40


HANGUP = """
import os, signal, sys
from arrowquant_dist.cli.outcome import outcome
from arrowquant_dist.cli.streams import end_with_terminal
from arrowquant_dist.errors import RESUMES
# What the tests were started with does not count: CI may run them where the signal is ignored.
signal.signal(signal.SIGHUP, signal.SIG_IGN if sys.argv[1] == "nohup" else signal.SIG_DFL)
end_with_terminal()
try:
    with outcome(as_json=False, if_interrupted=RESUMES):
        os.kill(os.getpid(), signal.SIGHUP)
        for _ in range(100_000):
            pass
        print("went on")
except Exception as end:
    sys.exit(end.exit_code)
"""


def test_a_terminal_that_disappears_interrupts_as_ctrl_c_does() -> None:
    run = [sys.executable, "-c", HANGUP]
    ended = subprocess.run([*run, "plain"], check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (130, "")
    assert ended.stderr.startswith("error: interrupted; what is finished is kept")
    assert subprocess.run([*run, "nohup"], check=True, capture_output=True, text=True).stdout == "went on\n"
