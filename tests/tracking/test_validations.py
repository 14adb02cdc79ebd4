"""A validation as one MLflow run for all of its configs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from arrowquant_dist import RunConfig, Validation, validate
from arrowquant_dist.validation import resident
from tests.evaluation.models import TEXTS, save_bert
from tests.tracking.logged_runs import artifacts_of, logged_runs


def validated(tmp_path: Path, progress: Any = False) -> Validation:  # noqa: FBT002
    run = RunConfig(engine="inline", workers=1, storage_options={"token": "hunter2"})
    source = save_bert(tmp_path / "source")
    return validate(source, tmp_path / "out", ["int8"], texts=TEXTS, run=run, progress=progress)


@pytest.fixture(autouse=True)
def without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that does not say what is resident, so that no process has to be started."""
    monkeypatch.setattr(resident, "can_measure", lambda: False)


def test_it_has_what_each_config_came_to_and_the_report_and_what_it_made_are_no_runs(
    runs: Path, tmp_path: Path
) -> None:
    found = validated(tmp_path)
    [run] = logged_runs()
    params, metrics, tags = run.data.params, run.data.metrics, run.data.tags
    assert (run.info.status, run.info.run_name) == ("FINISHED", "out")
    assert tags["mlflow.source.name"] == "arrowquant validate"
    assert tags["arrowquant.accepted"] == str(found.is_accepted).lower()
    assert (params["source"], params["texts.count"]) == (str(tmp_path / "source"), str(len(TEXTS)))
    assert '"quant_type": "int8"' in params["config.int8"]
    [one] = found.datasets
    assert metrics["int8/compression_vs_fp16"] == one.report.totals.compression_vs_fp16
    assert one.evaluation is not None
    assert one.evaluation.embeddings is not None
    assert metrics["int8/output_cosine"] == one.evaluation.embeddings.cosine_mean
    assert "int8/perplexity_excess" not in metrics
    assert sum(metrics[f"criteria/{how}"] for how in ("passed", "failed", "not_measured")) == len(
        found.criteria
    )
    names = ("validation.json", "validation.md", "validation.html")
    assert artifacts_of(run, runs) == {name: (tmp_path / "out" / name).read_bytes() for name in names}


def test_a_server_that_is_lost_costs_a_note_and_no_report(runs: Path, tmp_path: Path) -> None:
    found = validated(tmp_path, lambda _: shutil.rmtree(runs, ignore_errors=True))
    [note] = [note for note in found.notes if note.name == "tracking"]
    assert note.text.startswith("the validation is written, but not all of its figures are in MLflow: ")
    assert (tmp_path / "out" / "validation.json").exists()
