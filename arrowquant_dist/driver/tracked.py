"""`quantize` as an MLflow run, where the environment names a tracking server (tracking/tracked.py). The MLflow run is
created before the first header is read."""

from __future__ import annotations

from dataclasses import replace

from arrowquant_dist.config import QuantizationConfig, RunConfig, check_config, check_run
from arrowquant_dist.config.settled import settled
from arrowquant_dist.driver.outcome import Outcome
from arrowquant_dist.driver.run import quantize
from arrowquant_dist.engine.progress import OnProgress
from arrowquant_dist.location import Location, location
from arrowquant_dist.storage.uris import redact
from arrowquant_dist.tracking.datasets import ending_of_dataset
from arrowquant_dist.tracking.tracked import Beginning, Ending, tracked


def quantize_tracked(
    source: Location,
    target: Location,
    config: QuantizationConfig,
    run: RunConfig,
    on_progress: OnProgress | None = None,
) -> Outcome:
    """Does what `quantize` does; with MLFLOW_TRACKING_URI in the environment, also records what was asked for and
    what came out as an MLflow run, which ends as the quantization does. Raises MissingDependency without MLflow, and
    ArrowQuantError if the server rejects the run, in both cases before anything is done."""

    def begin() -> Beginning:
        check_config(config)
        check_run(run)
        place = redact(location(target, "target"))
        values = {"source": redact(location(source, "source")), "target": place, **settled(config, run)}
        return Beginning("quantize", place, values)

    def end(outcome: Outcome) -> Ending:
        told = ending_of_dataset(outcome.target, run.target_storage, outcome.report)
        tags = {
            "arrowquant.already_finished": str(outcome.already_finished).lower(),
            "arrowquant.resumed_shards": str(len(outcome.report.run.resumed_shards)),
        }
        return replace(told, tags={**told.tags, **tags})

    outcome, untold = tracked(begin, lambda _: quantize(source, target, config, run, on_progress), end)
    if untold is None:
        return outcome
    note = f"the dataset is published, but {untold}"
    return replace(outcome, report=replace(outcome.report, notes=(*outcome.report.notes, note)))
