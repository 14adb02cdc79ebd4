"""What a command does as a run of MLflow, where the environment names a tracking server.

Whether the server takes the run is known before the work begins: where it does not, that is the error, since who set
the variable wants to have the run there. From then on nothing that the server does ends or changes the work: its result
is there whatever becomes of its figures, and the caller is told why they are not all in MLflow.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from arrowquant_dist.errors import ArrowQuantError, shortened
from arrowquant_dist.tracking.figures import finite_metrics, params_of
from arrowquant_dist.tracking.mlflow_run import TrackedRun, tracking_place

DATASET_TAG = "arrowquant.dataset"  # which one a run has made, or is about
_TAG_CHARS = 500
_logger = logging.getLogger("arrowquant_dist.tracking")
Returned = TypeVar("Returned")


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a run is known by before anything is done. command: of this program. place: what it makes or is about, safe
    to show; the last of its names is the run's. values: what was asked for, with all defaults. dataset: the identity of
    the one that it is about, whose own run it is then found below; "" where it is about none that is there."""

    command: str
    place: str
    values: Mapping[str, Any]
    dataset: str = ""


@dataclass(frozen=True, slots=True)
class Ending:
    """What came out: metrics, of which those without a finite value are left out, tags, and files that become
    artifacts, by their names."""

    metrics: Mapping[str, float | None]
    tags: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)


def tracked(
    begin: Callable[[], Beginning],
    work: Callable[[TrackedRun | None], Returned],
    end: Callable[[Returned], Ending],
) -> tuple[Returned, str | None]:
    """What `work` gives, and why its figures are not all in MLflow; None where they are, or where nobody asks for that.

    begin and end are called where MLFLOW_TRACKING_URI is set; work is given the run, to tell it of what happens on the
    way. The run ends as the work does. Raises MissingDependency without MLflow, and ArrowQuantError where the server
    does not take the run, before the work begins, and whatever begin and work raise.
    """
    place = tracking_place()
    if place is None:
        return work(None), None
    run = _started(place, begin())
    try:
        result = work(run)
    except BaseException as error:
        _end(run, error)
        raise
    try:
        ending = end(result)
        run.log(finite_metrics(ending.metrics), ending.tags, ending.files)
        run.end("FINISHED")
    except ArrowQuantError as error:
        return result, str(error)
    return result, None


def _started(place: str, beginning: Beginning) -> TrackedRun:
    name = beginning.place.rstrip("/").rpartition("/")[2]
    tags = {"mlflow.source.name": f"arrowquant {beginning.command}", "mlflow.source.type": "JOB"}
    below = (DATASET_TAG, beginning.dataset) if beginning.dataset else None
    return TrackedRun.start(place, name, params_of(beginning.values), tags, below)


def _end(run: TrackedRun, error: BaseException) -> None:
    """What stopped the work is on its way to whoever asked for it; that the server does not hear of it is a warning."""
    kind = error.kind if isinstance(error, ArrowQuantError) else type(error).__name__
    tags = {"arrowquant.error": kind}
    if isinstance(error, ArrowQuantError):  # which have no secrets
        tags["arrowquant.message"] = shortened(str(error), _TAG_CHARS)
    try:
        run.end("FAILED" if isinstance(error, Exception) else "KILLED", tags)
    except ArrowQuantError as failure:
        _logger.warning("%s", failure)
