"""`arrowquant validate`: exit codes, and what is printed where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from arrowquant_dist.cli import app
from tests.evaluation.models import TEXTS, save_bert
from tests.validation.conftest import without_memory

__all__ = ["without_memory"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["validate", *map(str, arguments)])


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = save_bert(tmp_path_factory.mktemp("bert") / "source")
    (source.parent / "few.txt").write_text("\n".join(TEXTS[:3]))
    return source


@pytest.mark.usefixtures("without_memory")
def test_a_criterion_that_is_not_met_ends_with_1_and_the_report_is_written(
    bert: Path, tmp_path: Path
) -> None:
    targets = tmp_path / "targets.yaml"
    targets.write_text(
        "configs: {int8: {weight_cosine: 0.9999999, output_cosine: 0.5, perplexity_excess: 0.1}}"
    )
    out, page = tmp_path / "out", tmp_path / "page.html"
    given = ("--configs", "int8", "--texts", bert.parent / "few.txt", "--targets", targets, "--html", page)
    done = run(bert, out, *given)
    assert done.exit_code == 1
    assert "fail: weight cosine, mean of int8" in done.stdout
    assert "not measured: excess of perplexity of int8" in done.stdout
    assert "not accepted" in done.stdout
    assert "validate: int8: quantizing" in done.stderr
    statuses = {
        one["key"]: one["status"] for one in json.loads((out / "validation.json").read_text())["criteria"]
    }
    assert (statuses["weight_cosine"], statuses["output_cosine"]) == ("fail", "pass")
    assert statuses["perplexity_excess"] == "not measured"
    assert page.read_text() == (out / "validation.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--configs", "int9"), "did you mean"),
        (("--targets", "missing.yaml"), "the file of targets does not exist"),
        (("--texts", "missing.txt"), "no such file of texts"),
        (("int8",), "go after --configs"),
        (("--html", "/"), "this is a folder"),
        (("--html", "no/such/page.html"), "no/such is not a folder"),
    ],
)
def test_bad_input_ends_with_2(bert: Path, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run(bert, tmp_path / "out", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert not (tmp_path / "out").exists()
