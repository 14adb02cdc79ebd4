"""`arrowquant evaluate`, and what `report` shows of an evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from arrowquant_dist import QuantizationConfig
from arrowquant_dist.cli import app
from tests.evaluation.models import TEXTS, quantize, save_bert


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert") / "source")


@pytest.fixture(scope="module")
def target(source: Path) -> Path:
    return quantize(source, source.parent / "target", QuantizationConfig("int2", symmetric=False))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS))
    return path


def test_it_prints_a_table_and_tells_of_progress_on_stderr(source: Path, target: Path, texts: Path) -> None:
    result = run("evaluate", source, target, "--texts", texts)
    assert result.exit_code == 0
    lines = {line.split("  ")[1]: line for line in result.stdout.splitlines() if line.startswith("  ")}
    assert "embedding cosine" in lines
    assert "25 texts" in lines["texts"]
    assert "evaluate: embedding with the dataset, 25 of 25 texts" in result.stderr.splitlines()
    assert "evaluate: reading the original, " in result.stderr


def test_json_is_one_document_that_is_in_the_report_too(source: Path, target: Path, texts: Path) -> None:
    result = run("evaluate", source, target, "--texts", texts, "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["embeddings"]["pairs"] == 300
    assert found["texts"]["name"] == str(texts)
    written = json.loads((target / "report" / "evaluation.json").read_text())
    assert found.pop("schema_version") == 1
    assert found in written["evaluations"]
    report = json.loads(run("report", target, "--json").stdout)
    assert found in report["evaluations"]


def test_the_report_and_a_comparison_show_it(source: Path, target: Path, texts: Path, tmp_path: Path) -> None:
    other = quantize(source, tmp_path / "other", QuantizationConfig("int8"))
    for each in (target, other):
        assert run("evaluate", source, each, "--texts", texts, "--json").exit_code == 0
    assert "embedding cosine" in run("report", target).stdout
    compared = run("report", target, "--compare", other)
    row = next(line for line in compared.stdout.splitlines() if "embedding cosine, mean" in line)
    low, high = map(float, row.rsplit(maxsplit=2)[1:])
    assert low < 0.99 < high <= 1
    page = tmp_path / "page.html"
    assert run("report", target, "--compare", other, "--html", page).exit_code == 0
    assert f"embedding cosine, mean ({texts})" in page.read_text()
    listed = json.loads(run("report", target, "--compare", other, "--json").stdout)["reports"]
    assert [each["evaluations"][-1]["texts"]["texts"] for each in listed] == [25, 25]


def test_a_column_is_taken(source: Path, target: Path, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS))
    assert run("evaluate", source, target, "--texts", path, "--column", "body").exit_code == 0
    result = run("evaluate", source, target, "--texts", path)
    assert result.exit_code == 2
    assert result.stderr.endswith("line 1 has no 'text', only body; name its key with --column\n")


@pytest.mark.parametrize(
    ("model", "dataset", "texts", "kind"),
    [
        ("no such", "target", "builtin", "not-found"),
        ("source", "no such", "builtin", "not-found"),
        ("source", "target", "texts.csv", "invalid-config"),
        ("source", "source", "builtin", "not-found"),
    ],
)
def test_bad_input_ends_with_2_and_one_line(
    source: Path, target: Path, model: str, dataset: str, texts: str, kind: str
) -> None:
    before = sorted(target.parent.rglob("*"))
    arguments = ("evaluate", source.parent / model, target.parent / dataset, "--texts", texts)
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len([line for line in result.stderr.splitlines() if line.startswith("error: ")]) == 1
    assert json.loads(run(*arguments, "--json").stdout)["error"]["kind"] == kind
    assert sorted(target.parent.rglob("*")) == before


def test_texts_have_to_be_given(source: Path, target: Path) -> None:
    result = run("evaluate", source, target)
    assert result.exit_code == 2
    assert "--texts" in result.stderr
