"""A training as an MLflow run: its losses step by step, and the dataset that it made."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from arrowquant_dist import Distilled, DistillSettings, QuantizationConfig, Report, distill, evaluate
from arrowquant_dist.errors import ArrowQuantError
from arrowquant_dist.models.threads import threads
from arrowquant_dist.tracking.steps import StepMetrics
from tests.evaluation.models import TEXTS, quantize, save_bert
from tests.tracking.logged_runs import artifacts_of, client, run_of

INT2 = QuantizationConfig("int2", per_channel=False, group_size=16, symmetric=False)


def trained(tmp_path: Path, progress: Any = False, every: int = 2) -> Distilled:  # noqa: FBT002
    model = save_bert(tmp_path / "source")
    target = quantize(model, tmp_path / "quantized", INT2)
    settings = DistillSettings(steps=4, batch_tokens=256, every=every)
    with threads(1):
        return distill(model, target, tmp_path / "trained", TEXTS, settings=settings, progress=progress)


def history(run: Any, metric: str) -> dict[int, float]:
    """{step: value}"""
    return {each.step: each.value for each in client().get_metric_history(run.info.run_id, metric)}


def test_it_has_the_loss_of_each_step_and_is_what_its_dataset_s_evaluation_is_below(
    runs: Path, tmp_path: Path
) -> None:
    told: list[tuple[int, float]] = []
    made = trained(tmp_path, lambda done, loss: told.append((done.step, loss)))
    evaluate(tmp_path / "source", tmp_path / "trained", TEXTS, progress=False)
    run = run_of("distill")
    params, metrics, tags = run.data.params, run.data.metrics, run.data.tags
    assert (run.info.status, run.info.run_name) == ("FINISHED", "trained")
    assert tags["mlflow.parentRunId"] == run_of("quantize").info.run_id
    assert run_of("evaluate").data.tags["mlflow.parentRunId"] == run.info.run_id
    assert history(run, "loss/train") == dict(told)
    assert history(run, "loss/held_back") == made.losses
    assert {*made.losses} == {0, 2, 4}
    assert metrics["loss/after"] == made.losses[made.best]
    assert (params["settings.steps"], params["texts.count"]) == ("4", str(len(TEXTS)))
    totals = Report.load(tmp_path / "trained").totals
    assert metrics["size/stored_nbytes"] == totals.parts_nbytes
    written = {path.name: path for path in (tmp_path / "trained" / "report").iterdir()}
    assert {*artifacts_of(run, runs)} == {name for name in written if not name.startswith("evaluation")}


def test_a_server_that_is_lost_costs_a_note_and_no_dataset(runs: Path, tmp_path: Path) -> None:
    made = trained(tmp_path, lambda *_: shutil.rmtree(runs, ignore_errors=True))
    [note] = made.notes
    assert note.startswith("the dataset is published, but not all of its figures are in MLflow: ")
    assert made.to_dict()["notes"] == [note]
    assert (tmp_path / "trained" / "manifest.json").exists()


class Server:
    """Stands in for a run whose server may be lost. told: what each request had, by step."""

    def __init__(self) -> None:
        self.told: list[list[int]] = []
        self.is_lost = False

    def log_steps(self, metrics: Any) -> None:
        self.told.append([each.step for each in metrics])
        if self.is_lost:
            raise ArrowQuantError("no server")


def test_steps_are_told_every_ten_seconds_and_a_lost_server_is_not_tried_again_before_the_end() -> None:
    server, now = Server(), [0.0]
    metrics = StepMetrics(server, lambda: now[0])  # type: ignore[arg-type]
    for step in range(1, 41):
        now[0] = float(step)
        server.is_lost = step >= 20
        metrics.add(step, {"loss": 1.0, "none": float("nan")})
    assert server.told == [[*range(1, 11)], [*range(11, 21)]]
    with pytest.raises(ArrowQuantError, match="no server"):
        metrics.tell()
    server.is_lost = False
    metrics.tell()
    assert server.told[-1] == [*range(11, 41)]
