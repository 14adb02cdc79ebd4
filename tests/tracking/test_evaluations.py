"""An evaluation as an MLflow run, below that of its dataset."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from arrowquant_dist import ArrowQuantError, QuantizationConfig, evaluate
from arrowquant_dist.cli import app
from arrowquant_dist.errors import ModelMismatch, NotFound
from arrowquant_dist.report.evaluations import load_evaluations
from tests.evaluation.models import TEXTS, quantize, save_bert
from tests.tracking.logged_runs import artifacts_of, client, logged_runs, run_of

INT4 = QuantizationConfig("int4", per_channel=False, group_size=16, symmetric=False)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_bert(tmp_path / "source")


@pytest.fixture
def target(runs: Path, source: Path, tmp_path: Path) -> Path:
    """Of a run that this MLflow knows."""
    return quantize(source, tmp_path / "target", INT4)


def by_call(source: Path, target: Path) -> None:
    evaluate(source, target, TEXTS, progress=False)


def by_command(source: Path, target: Path) -> None:
    texts = target.parent / "texts.txt"
    texts.write_text("\n".join(TEXTS))
    with pytest.raises(SystemExit) as end:
        app(args=["evaluate", str(source), str(target), "--texts", str(texts), "--quiet"])
    assert not end.value.code


@pytest.mark.parametrize("evaluated", [by_call, by_command])
def test_it_is_a_run_below_its_dataset_s_with_sizes_beside_outputs(
    evaluated: Callable[[Path, Path], None], runs: Path, source: Path, target: Path
) -> None:
    evaluated(source, target)
    [found] = load_evaluations(target)
    made, run = run_of("quantize"), run_of("evaluate")
    params, metrics, tags = run.data.params, run.data.metrics, run.data.tags
    assert (run.info.status, run.info.run_name) == ("FINISHED", "target")
    assert tags["mlflow.parentRunId"] == made.info.run_id
    assert tags["arrowquant.dataset"] == made.data.tags["arrowquant.dataset"] == found.dataset
    assert (params["model"], params["target"]) == (str(source), str(target))
    assert (params["texts.name"], params["texts.digest"]) == (found.texts.name, found.texts.digest)
    assert found.embeddings is not None
    assert {f"outputs/{name}": value for name, value in asdict(found.embeddings).items()}.items() <= (
        metrics.items()
    )
    for name in ("size/bits_per_weight", "accuracy/cosine_mean"):
        assert metrics[name] == made.data.metrics[name]
    written = {name: (target / "report" / name).read_bytes() for name in ("evaluation.json", "evaluation.md")}
    assert artifacts_of(run, runs) == written


def test_of_a_dataset_that_the_experiment_does_not_know_it_is_a_run_all_the_same(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "others")
    by_call(source, target)
    [run] = logged_runs(client().get_experiment_by_name("others").experiment_id)
    assert "mlflow.parentRunId" not in run.data.tags
    assert "outputs/cosine_mean" in run.data.metrics


def test_one_that_fails_is_failed_there_and_its_dataset_s_run_is_not(
    runs: Path, target: Path, tmp_path: Path
) -> None:
    other = save_bert(tmp_path / "other", hidden_size=64)
    with pytest.raises(ModelMismatch):
        by_call(other, target)
    assert (run_of("evaluate").info.status, run_of("quantize").info.status) == ("FAILED", "FINISHED")
    assert run_of("evaluate").data.tags["arrowquant.error"] == "model-mismatch"


def test_a_server_that_is_lost_costs_a_note_and_no_figure(runs: Path, source: Path, target: Path) -> None:
    found = evaluate(source, target, TEXTS, progress=lambda _: shutil.rmtree(runs, ignore_errors=True))
    [note] = [note for note in found.notes if "MLflow" in note]
    assert note.startswith("it is in the dataset's report, but not all of its figures are in MLflow: ")
    assert [one.embeddings for one in load_evaluations(target)] == [found.embeddings]


def test_a_server_that_does_not_answer_ends_it_before_anything_is_measured(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ArrowQuantError, match="check MLFLOW_TRACKING_URI, or unset it"):
        by_call(source, target)
    assert load_evaluations(target) == ()


def test_a_place_without_a_dataset_is_an_error_and_no_run(runs: Path, source: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no finished dataset"):
        by_call(source, tmp_path / "nowhere")
    assert not runs.exists()
