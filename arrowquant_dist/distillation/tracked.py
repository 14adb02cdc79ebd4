"""`distill` as a run of MLflow, where the environment names a tracking server (tracking/tracked.py): a run of its own
below that of the trained dataset, with the losses by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from arrowquant_dist.config import RunConfig
from arrowquant_dist.config.settled import settled_run
from arrowquant_dist.distillation.result import Distilled
from arrowquant_dist.distillation.run import run_distillation
from arrowquant_dist.distillation.settings import DistillSettings
from arrowquant_dist.distillation.training import OnStep, TrainingProgress
from arrowquant_dist.location import Location, location
from arrowquant_dist.report.evaluations import dataset_identity
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.uris import redact
from arrowquant_dist.target.manifest import Manifest
from arrowquant_dist.texts import Texts
from arrowquant_dist.tracking.datasets import ending_of_dataset
from arrowquant_dist.tracking.figures import facts_of_texts
from arrowquant_dist.tracking.mlflow_run import TrackedRun
from arrowquant_dist.tracking.steps import StepMetrics
from arrowquant_dist.tracking.tracked import Beginning, Ending, tracked

_TRAIN, _HELD_BACK = "loss/train", "loss/held_back"


def distill_tracked(
    model: Location,
    target: Location,
    out: Location,
    texts: Texts,
    settings: DistillSettings,
    memory_nbytes: int,
    run: RunConfig,
    told: OnStep | None,
) -> Distilled:
    """`run_distillation`; with MLFLOW_TRACKING_URI in the environment it is a run there, too. Raises MissingDependency
    without MLflow, and ArrowQuantError where the server does not accept the run, before anything is trained."""

    def begin() -> Beginning:
        trained, place = location(target, "target"), redact(location(out, "out"))
        manifest = Manifest.of_finished(open_store(trained, run.target_storage), "which could be trained")
        values = {
            "model": redact(location(model, "model")),
            "target": redact(trained),
            "out": place,
            "texts": facts_of_texts(texts),
            "settings": settings.to_dict(),
            "run": settled_run(run),
        }
        return Beginning("distill", place, values, dataset_identity(manifest))

    def work(tracked_run: TrackedRun | None) -> tuple[Distilled, _Losses | None]:
        losses = _Losses(tracked_run, told) if tracked_run is not None else None
        found = run_distillation(model, target, out, texts, settings, memory_nbytes, run, losses or told)
        return found, losses

    def end(found: tuple[Distilled, _Losses | None]) -> Ending:
        made, losses = found
        if losses is not None:
            losses.finish(made)
        dataset = ending_of_dataset(made.target, run.target_storage)
        tags = {"arrowquant.already_finished": str(made.already_finished).lower()}
        return replace(dataset, metrics={**dataset.metrics, **_metrics(made)}, tags={**dataset.tags, **tags})

    (made, _), untold = tracked(begin, work, end)
    if untold is None:
        return made
    note = f"the dataset is published, but {untold}"
    return replace(made, notes=(*made.notes, note))


class _Losses:
    """Called after each step: reports losses to the run, and calls `told`."""

    def __init__(self, run: TrackedRun, told: OnStep | None) -> None:
        self._metrics, self._told = StepMetrics(run), told
        self._held_back: set[int] = set()  # steps whose loss of held-back texts was reported

    def __call__(self, done: TrainingProgress, loss: float) -> None:
        self._metrics.add(done.step, {_TRAIN: loss})
        self._add_held_back(done.losses)
        if self._told is not None:
            self._told(done, loss)

    def finish(self, made: Distilled) -> None:
        """Reports what is left. Raises ArrowQuantError where the server does not accept it."""
        self._add_held_back(made.losses)
        self._metrics.tell()

    def _add_held_back(self, losses: Mapping[int, float]) -> None:
        for step in losses.keys() - self._held_back:
            self._metrics.add(step, {_HELD_BACK: losses[step]})
        self._held_back |= losses.keys()


def _metrics(made: Distilled) -> dict[str, float | None]:
    return {
        "loss/before": made.losses[0],
        "loss/after": made.losses[made.best],
        "training/steps": made.steps,
        "training/best_step": made.best,
        "training/matrices": made.matrices,
        "training/vectors": made.vectors,
        "seconds/training": made.seconds,
    }
