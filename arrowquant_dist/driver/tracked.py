"""`quantize` as a run of MLflow, where the environment names a tracking server.

Whether the server takes the run is known before the first header is read: where it does not, that is the error, since
who set the variable wants to have the run there. From then on nothing that the server does ends or changes the run: a
dataset is published whatever becomes of its figures, and a note says that they are not there.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import PurePosixPath

from arrowquant_dist.config import QuantizationConfig, RunConfig, check_config, check_run
from arrowquant_dist.driver.outcome import Outcome
from arrowquant_dist.driver.run import quantize
from arrowquant_dist.engine.progress import OnProgress
from arrowquant_dist.errors import ArrowQuantError, shortened
from arrowquant_dist.location import Location, location
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.uris import redact
from arrowquant_dist.target.manifest import Manifest
from arrowquant_dist.tracking.figures import metrics_of, params_of
from arrowquant_dist.tracking.mlflow_run import EndStatus, TrackedRun, tracking_place

_TAG_CHARS = 500
_logger = logging.getLogger("arrowquant_dist.tracking")


def quantize_tracked(
    source: Location,
    target: Location,
    config: QuantizationConfig,
    run: RunConfig,
    on_progress: OnProgress | None = None,
) -> Outcome:
    """As `quantize`; with MLFLOW_TRACKING_URI in the environment also a run there, of what was asked for and what came
    out, which ends as the run does. Raises MissingDependency without MLflow, and ArrowQuantError where the server does
    not take the run, before anything is done."""
    place = tracking_place()
    if place is None:
        return quantize(source, target, config, run, on_progress)
    tracked = _start(place, source, target, config, run)
    try:
        outcome = quantize(source, target, config, run, on_progress)
    except BaseException as error:
        is_told = isinstance(error, Exception)
        _end(tracked, "FAILED" if is_told else "KILLED", error)
        raise
    return _finish(tracked, outcome, run)


def _start(
    place: str, source: Location, target: Location, config: QuantizationConfig, run: RunConfig
) -> TrackedRun:
    check_config(config)
    check_run(run)
    places = redact(location(source, "source")), redact(location(target, "target"))
    name = places[1].rstrip("/").rpartition("/")[2]
    tags = {"mlflow.source.name": "arrowquant quantize", "mlflow.source.type": "JOB"}
    return TrackedRun.start(place, name, params_of(*places, config, run), tags)


def _end(tracked: TrackedRun, status: EndStatus, error: BaseException) -> None:
    """What stopped the run is on its way to whoever asked for it; that the server does not hear of it is a warning."""
    kind = error.kind if isinstance(error, ArrowQuantError) else type(error).__name__
    tags = {"arrowquant.error": kind}
    if isinstance(error, ArrowQuantError):  # which have no secrets
        tags["arrowquant.message"] = shortened(str(error), _TAG_CHARS)
    try:
        tracked.end(status, tags)
    except ArrowQuantError as failure:
        _logger.warning("%s", failure)


def _finish(tracked: TrackedRun, outcome: Outcome, run: RunConfig) -> Outcome:
    report = outcome.report
    tags = {
        "arrowquant.fingerprint": report.fingerprint,
        "arrowquant.already_finished": str(outcome.already_finished).lower(),
        "arrowquant.resumed_shards": str(len(report.run.resumed_shards)),
    }
    try:
        tracked.log(metrics_of(report), tags, _files(outcome, run))
        tracked.end("FINISHED")
    except ArrowQuantError as error:
        note = f"the dataset is published, and its figures are not all in MLflow: {error}"
        return replace(outcome, report=replace(report, notes=(*report.notes, note)))
    return outcome


def _files(outcome: Outcome, run: RunConfig) -> dict[str, bytes]:
    """Those of the report, by their names."""
    store = open_store(outcome.target, run.target_storage)
    return {PurePosixPath(file.path).name: store.read(file.path) for file in Manifest.read(store).report}
