"""A run of this package in a real MLflow whose store is a folder."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from arrowquant_dist import ArrowQuantError, ArrowQuantizer, QuantizationConfig, Report, RunConfig
from arrowquant_dist.engine.progress import Progress
from arrowquant_dist.errors import InvalidCheckpoint, MissingDependency
from tests.logged import Logged
from tests.sources import random_weights, save_checkpoint
from tests.tracking.logged_runs import artifacts_of, logged_runs

SECRET = "hunter2"  # noqa: S105
RUN = RunConfig(engine="inline", workers=1, storage_options={"token": SECRET})
CONFIG = QuantizationConfig("int4", per_channel=False, group_size=16, symmetric=False)


@pytest.fixture
def source(tmp_path: Path) -> str:
    return save_checkpoint(tmp_path / "source", random_weights(2, 8, 32, torch.float32))


def quantize(source: str, tmp_path: Path, progress: Callable[[Progress], None] | bool = False) -> Report:  # noqa: FBT001, FBT002
    return ArrowQuantizer(CONFIG, RUN).quantize(source, tmp_path / "target", progress=progress)


def files_in(folder: Path) -> str:
    return "".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())


def test_a_run_has_what_was_asked_for_what_came_out_and_the_report(
    runs: Path, source: str, tmp_path: Path
) -> None:
    report = quantize(source, tmp_path)
    [run] = logged_runs()
    params, metrics, tags = run.data.params, run.data.metrics, run.data.tags
    assert run.info.status == "FINISHED"
    assert (run.info.run_name, tags["arrowquant.fingerprint"]) == ("target", report.fingerprint)
    assert (params["quant_type"], params["group_size"], params["method"]) == ("int4", "16", "mse")
    assert (params["source"], params["run.engine"]) == (source, "inline")
    assert params["versions.numpy"]
    assert metrics["size/stored_nbytes"] == report.totals.parts_nbytes
    assert metrics["size/bits_per_weight"] == 8 * report.totals.parts_nbytes / report.totals.params
    assert report.accuracy is not None
    assert report.accuracy.cosine is not None
    assert metrics["accuracy/cosine_mean"] == report.accuracy.cosine.mean
    assert {"seconds/planning", "seconds/running", "worker_seconds/quantize"} <= set(metrics)
    written = {path.name: path.read_bytes() for path in (tmp_path / "target" / "report").iterdir()}
    assert artifacts_of(run, runs) == written


def test_nothing_that_may_be_secret_is_told(runs: Path, source: str, tmp_path: Path) -> None:
    place = f"nowhere://user:{SECRET}@host/model?signature={SECRET}"
    with pytest.raises(ArrowQuantError):
        quantize(place, tmp_path)
    quantize(source, tmp_path)
    assert len(logged_runs()) == 2
    assert SECRET not in files_in(runs)


def test_a_run_that_fails_is_failed_there_with_the_kind_of_error(
    runs: Path, source: str, tmp_path: Path
) -> None:
    Path(source, "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(InvalidCheckpoint):
        quantize(source, tmp_path)
    [run] = logged_runs()
    assert (run.info.status, run.data.tags["arrowquant.error"]) == ("FAILED", "invalid-checkpoint")
    assert "model.safetensors" in run.data.tags["arrowquant.message"]


def test_a_run_that_is_interrupted_is_killed_there(runs: Path, source: str, tmp_path: Path) -> None:
    def interrupt(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(source, tmp_path, interrupt)
    [run] = logged_runs()
    assert run.info.status == "KILLED"


def test_a_server_that_is_lost_costs_a_note_and_no_dataset(runs: Path, source: str, tmp_path: Path) -> None:
    report = quantize(source, tmp_path, lambda _: shutil.rmtree(runs, ignore_errors=True))
    [note] = [note for note in report.notes if "MLflow" in note]
    assert "the dataset is published, but not all of its figures are in MLflow" in note
    assert (tmp_path / "target" / "manifest.json").exists()


def test_a_server_that_is_lost_before_a_failure_is_a_warning_beside_it(
    runs: Path, source: str, tmp_path: Path, logged: Logged
) -> None:
    def lose(_: Progress) -> None:
        shutil.rmtree(runs)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        quantize(source, tmp_path, lose)
    assert "MLflow does not accept what it is sent" in logged.text


def test_a_server_that_does_not_answer_ends_it_before_anything_is_done(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{SECRET}@127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    with pytest.raises(ArrowQuantError, match="check MLFLOW_TRACKING_URI, or unset it") as raised:
        quantize(source, tmp_path)
    assert SECRET not in str(raised.value)
    assert not (tmp_path / "target").exists()


def test_without_mlflow_the_error_says_what_to_install(
    runs: Path, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingDependency, match=r"pip install 'arrowquant-dist\[mlflow\]'"):
        quantize(source, tmp_path)
    assert not (tmp_path / "target").exists()


def test_of_a_database_the_error_says_what_to_install(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql+psycopg2://user:{SECRET}@127.0.0.1/runs")
    monkeypatch.setattr("arrowquant_dist.tracking.mlflow_run.find_spec", lambda _name: None)
    with pytest.raises(MissingDependency, match="pip install mlflow, or name a server") as raised:
        quantize(source, tmp_path)
    assert SECRET not in str(raised.value)
    assert not (tmp_path / "target").exists()


def test_it_is_below_the_run_that_is_open_here_and_leaves_that_open(
    runs: Path, source: str, tmp_path: Path
) -> None:
    import mlflow

    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    try:
        with mlflow.start_run() as outer:
            quantize(source, tmp_path)
            assert mlflow.active_run().info.run_id == outer.info.run_id
        inner = next(run for run in logged_runs() if run.info.run_id != outer.info.run_id)
        assert inner.data.tags["mlflow.parentRunId"] == outer.info.run_id
    finally:
        mlflow.set_tracking_uri(None)  # as it was: "" would mean a folder here to all tests that follow


def test_without_the_variable_nothing_of_mlflow_is_imported(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    quantize(source, tmp_path)
