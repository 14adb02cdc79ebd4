"""`validate` as an MLflow run, if the environment names a tracking server (tracking/tracked.py): one run for all
configs, with the figures of each."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from arrowquant_dist.storage.uris import redact
from arrowquant_dist.texts.steps import StepCallback
from arrowquant_dist.tracking.figures import facts_of_texts
from arrowquant_dist.tracking.tracked import Beginning, Ending, tracked
from arrowquant_dist.validation.figures import FAILED, NOT_MEASURED, PASSED, NamedNote, Validation
from arrowquant_dist.validation.measures import MEASURABLES
from arrowquant_dist.validation.place import PATHS
from arrowquant_dist.validation.run import Asked, run_validation

TRACKING_NOTE = "tracking"  # name of the note


def validate_tracked(asked: Asked, progress: StepCallback | None) -> Validation:
    """Does what `run_validation` does, and records it as an MLflow run if MLFLOW_TRACKING_URI is in the environment.
    The run ends as finished, whether or not the criteria are met. Raises MissingDependency if MLflow is not installed,
    and ArrowQuantError if the server does not accept the run, before anything else is done."""

    def begin() -> Beginning:
        place = redact(asked.place.out)
        values = {
            "source": asked.name,
            "out": place,
            "targets": asked.targets.name,
            "texts": facts_of_texts(asked.texts),
            "config": {one.name: one.config.to_dict() for one in asked.configs},
        }
        return Beginning("validate", place, values)

    def end(found: Validation) -> Ending:
        files = {path: asked.place.store.read(path) for path in PATHS}
        return Ending(_metrics(found), {"arrowquant.accepted": str(found.is_accepted).lower()}, files)

    found, untold = tracked(begin, lambda _: run_validation(asked, progress), end)
    if untold is None:
        return found
    text = f"the validation is written, but {untold}"
    return replace(found, notes=(*found.notes, NamedNote(TRACKING_NOTE, text)))


def _metrics(found: Validation) -> dict[str, float | None]:
    """All figures that may have a target, as CONFIG/KEY with the keys of a file of targets, and how many criteria are
    met."""
    figures = {
        f"{one.name}/{measurable.key}": measurable.figure(one)
        for one in found.datasets
        for measurable in MEASURABLES
    }
    met = Counter(one.status for one in found.criteria)
    return {
        **figures,
        "criteria/passed": met[PASSED],
        "criteria/failed": met[FAILED],
        "criteria/not_measured": met[NOT_MEASURED],
        "seconds/wall": found.seconds,
    }
