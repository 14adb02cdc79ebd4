"""On real terminals of 80 and 60 columns, nothing is wider or torn apart, and a run ends on one screen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from arrowquant_dist.cli import app
from tests.terminals import Shown, on_terminal

WIDTHS = (80, 60)
COMMANDS = (
    "inspect minilm",
    "inspect t --filter query --sort stored --limit 3",
    "report t",
    "report t --compare t t",
    "verify t",
    "config list",
    "config show int4",
    "config check int4",
    "quantize minilm t",
    "quantize minilm new --quant int4 --dry-run",
)
UNIT = re.compile(r"(?:[kMGT]?B|[kMBT]|s|ms|min \d|h|%|dB|bits)(?:\W|$)|×")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def ended(place: Path) -> dict[int, Shown]:
    """What `quantize minilm` showed at each width; the first one's dataset is `t`."""
    shown = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for width, target in zip(WIDTHS, ("t", "u"), strict=True):
            shown[width] = on_terminal(width, "quantize", "minilm", target, patch=patch)
    return shown


def check_fits(shown: Shown, width: int, words: set[str]) -> None:
    """words: all that there are, of the same output on a pipe."""
    assert shown.exit_code == 0, shown.drawn
    assert max(map(len, shown.every_line)) <= width
    torn = {word for word in shown.words - words if "…" not in word and set(word) - set("─━\\")}
    assert not torn
    for line, following in zip(shown.lines, shown.lines[1:], strict=False):
        is_torn = re.search(r"\d$", line) and UNIT.match(following.strip())
        assert not is_torn, (line, following)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_is_wider_than_the_terminal_and_nothing_is_torn_apart(
    command: str, width: int, place: Path, ended: dict[int, Shown], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    shown = on_terminal(width, *command.split(), patch=monkeypatch)
    plain = CliRunner().invoke(app, command.split())
    progress = {word for word in shown.words if re.fullmatch(r"[\d.]+|.?B/s,?|\d+%|verify|quantize", word)}
    check_fits(shown, width, {*plain.output.split(), *progress})


@pytest.mark.parametrize("width", WIDTHS)
def test_a_run_ends_on_one_screen_with_what_counts(width: int, ended: dict[int, Shown]) -> None:
    shown = ended[width]
    assert shown.exit_code == 0
    assert max(map(len, shown.every_line)) <= width
    begin = next(index for index, line in enumerate(shown.lines) if line.startswith("written to "))
    end = "\n".join(shown.lines[begin:])
    assert len(shown.lines[begin:-1]) <= 12
    assert re.search(r"size +90\.9 MB → 21\.\d MB, 7\.\d\d bits a weight\n", end)
    assert re.search(r"compression +4\.3\d× vs source, 2\.1\d× vs fp16\n", end)
    assert "  worst layer    embeddings." in end
    assert "/report/report.html\n" in end
    assert "arrowquant report " in end
    assert "arrowquant evaluate" in end
    assert "--texts builtin:held-back" in end


@pytest.mark.parametrize("width", WIDTHS)
def test_progress_stays_on_one_line(width: int, ended: dict[int, Shown]) -> None:
    bars = [line for line in ended[width].every_line if "━" in line]
    assert any("100%" in line for line in bars)
    assert not [line for line in ended[width].lines if line.strip().startswith(("MB", "layers", "workers"))]


@pytest.mark.parametrize("width", WIDTHS)
def test_an_error_is_folded_at_its_words(width: int, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    shown = on_terminal(width, "quantize", "minilm", "x", "--quant", "int5", patch=monkeypatch)
    plain = CliRunner().invoke(app, ["quantize", "minilm", "x", "--quant", "int5"])
    assert shown.exit_code == 2
    assert " ".join(" ".join(shown.lines).split()) == plain.stderr.strip()
    assert max(map(len, shown.every_line)) <= width
