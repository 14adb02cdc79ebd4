"""`arrowquant quantize --min-quality` keeps its promise, and the chosen config makes the same dataset again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from arrowquant_dist import evaluate
from arrowquant_dist.cli import app
from tests.datasets import weights_of
from tests.evaluation.models import TEXTS, save_bert, save_llama


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(" ".join(text.split()) for text in TEXTS), encoding="utf-8")
    return path


def kept_cosine(target: Path, report: dict[str, object], texts: Path, source: Path) -> bool:
    found = evaluate(source, target, texts).embeddings
    return found is not None and found.cosine_mean >= 0.98


def kept_perplexity(target: Path, report: dict[str, object], texts: Path, source: Path) -> bool:
    found = evaluate(source, target, texts).next_tokens
    return found is not None and found.excess <= 0.05


@pytest.mark.parametrize(
    ("save", "quality", "by_texts", "is_kept"),
    [
        (save_bert, "0.98", False, None),
        pytest.param(save_bert, "0.98", True, kept_cosine, marks=pytest.mark.slow),
        pytest.param(save_llama, "5%", True, kept_perplexity, marks=pytest.mark.slow),
    ],
)
def test_it_holds_and_the_table_in_plan_and_report_makes_the_same_bytes(
    save: Callable[[Path], Path],
    quality: str,
    is_kept: Callable[..., bool] | None,
    texts: Path,
    tmp_path: Path,
    *,
    by_texts: bool,
) -> None:
    source, target = save(tmp_path / "source"), tmp_path / "out"
    options = ["--texts", texts] if by_texts else []
    done = run("quantize", source, target, "--min-quality", quality, *options)
    assert done.exit_code == 0, done.output
    report = json.loads((target / "report" / "report.json").read_text())
    if is_kept is None:
        assert report["accuracy"]["cosine"]["mean"] >= 0.98
        assert any("min_quality: the parts take about" in note for note in report["notes"])
    else:
        assert is_kept(target, report, texts, source)
    asked = report["config"]["chosen_for"]["min_quality"]
    assert str(asked) == quality
    table = tmp_path / "table.json"
    table.write_text(json.dumps({key: value for key, value in report["config"].items() if key != "run"}))
    again = run("quantize", source, tmp_path / "again", "--config", table)
    assert again.exit_code == 0, again.output
    assert weights_of(tmp_path / "again") == weights_of(target)


def test_with_hessians_it_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    done = run("quantize", "nowhere", tmp_path / "out", "--min-quality", "0.98", "--hessians", "nowhere")
    assert done.exit_code == 2
    assert "min_quality: does not use hessians" in done.stderr
    assert not (tmp_path / "out").exists()
