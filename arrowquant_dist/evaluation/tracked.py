"""`evaluate` as a run of MLflow, where the environment names a tracking server (tracking/tracked.py). Each evaluation
is a run of its own below that of the dataset, so that evaluations with several texts can be compared."""

from __future__ import annotations

from dataclasses import replace

from arrowquant_dist.config import Storage
from arrowquant_dist.evaluation.publish import EvaluatedDataset
from arrowquant_dist.evaluation.run import run_evaluation
from arrowquant_dist.location import Location, location
from arrowquant_dist.report.evaluation import Evaluation
from arrowquant_dist.report.evaluations import EVALUATION_PAGE_PATH, EVALUATION_PATH
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.uris import redact
from arrowquant_dist.texts import Texts
from arrowquant_dist.texts.steps import StepCallback
from arrowquant_dist.tracking.datasets import ending_of_dataset
from arrowquant_dist.tracking.figures import evaluation_metrics, facts_of_texts
from arrowquant_dist.tracking.tracked import Beginning, Ending, tracked

_OF_THE_DATASET = ("size/", "accuracy/")  # the dataset's figures that its evaluations repeat


def evaluate_tracked(
    model: Location,
    target: Location,
    texts: Texts,
    storages: tuple[Storage, Storage],
    memory_nbytes: int,
    progress: StepCallback | None,
) -> Evaluation:
    """`run_evaluation`; with MLFLOW_TRACKING_URI in the environment it is a run there, too, with the sizes and errors
    of the dataset beside the figures of its outputs. Raises MissingDependency without MLflow, and ArrowQuantError where
    the server does not accept the run, before anything is measured."""

    def begin() -> Beginning:
        place = redact(location(target, "target"))
        of = redact(location(model, "model"))
        dataset = EvaluatedDataset.of(target, storages[1]).identity
        return Beginning(
            "evaluate", place, {"model": of, "target": place, "texts": facts_of_texts(texts)}, dataset
        )

    def end(found: Evaluation) -> Ending:
        dataset = ending_of_dataset(target, storages[1])
        beside = {name: value for name, value in dataset.metrics.items() if name.startswith(_OF_THE_DATASET)}
        store = open_store(location(target, "target"), storages[1])
        files = {
            path.rpartition("/")[2]: store.read(path) for path in (EVALUATION_PATH, EVALUATION_PAGE_PATH)
        }
        return Ending({**beside, **evaluation_metrics(found)}, dataset.tags, files)

    found, untold = tracked(
        begin, lambda _: run_evaluation(model, target, texts, storages, memory_nbytes, progress), end
    )
    if untold is None:
        return found
    note = f"it is in the dataset's report, but {untold}"
    return replace(found, notes=(*found.notes, note))
