"""The work of a command as a run of MLflow, where the environment names a tracking server.

Whether the server accepts the run is known before the work begins: if not, that is an error, since whoever set the
variable wants the run there. From then on nothing that the server does ends or changes the work: its result is there
whatever becomes of its figures, and the caller is told why they are not all in MLflow.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from arrowquant_dist.errors import ArrowQuantError, shortened
from arrowquant_dist.tracking.figures import finite_metrics, params_of
from arrowquant_dist.tracking.mlflow_run import TrackedRun, tracking_place

DATASET_TAG = "arrowquant.dataset"  # identity of the dataset that a run has made, or is about
_TAG_CHARS = 500
_logger = logging.getLogger("arrowquant_dist.tracking")
Returned = TypeVar("Returned")


@dataclass(frozen=True, slots=True)
class Beginning:
    """What identifies a run before anything is done. command: the command of this program. place: what it makes or is
    about, safe to show; its last name is the run's. values: the settings, defaults included. dataset: identity of the
    dataset that it is about, whose own run is to be its parent; "" where it is about none that exists."""

    command: str
    place: str
    values: Mapping[str, Any]
    dataset: str = ""


@dataclass(frozen=True, slots=True)
class Ending:
    """Results of a run: metrics, of which those without a finite value are left out; tags; and files, which become
    artifacts, by their names."""

    metrics: Mapping[str, float | None]
    tags: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)


def tracked(
    begin: Callable[[], Beginning],
    work: Callable[[TrackedRun | None], Returned],
    end: Callable[[Returned], Ending],
) -> tuple[Returned, str | None]:
    """The result of `work`, and the end of a note that not all of its figures are in MLflow and why; None where they
    are, or where it is not used.

    begin and end are called where MLFLOW_TRACKING_URI is set; work is given the run, to report to it on the way. The
    run ends as the work does. Raises MissingDependency without MLflow, ArrowQuantError where the server does not accept
    the run, before the work begins, and whatever begin and work raise.
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
        return result, f"not all of its figures are in MLflow: {error}"
    return result, None


def _started(place: str, beginning: Beginning) -> TrackedRun:
    name = beginning.place.rstrip("/").rpartition("/")[2]
    tags = {"mlflow.source.name": f"arrowquant {beginning.command}", "mlflow.source.type": "JOB"}
    below = (DATASET_TAG, beginning.dataset) if beginning.dataset else None
    return TrackedRun.start(place, name, params_of(beginning.values), tags, below)


def _end(run: TrackedRun, error: BaseException) -> None:
    """Ends a run whose work failed. The caller gets the error itself; where the server refuses it, that is logged."""
    kind = error.kind if isinstance(error, ArrowQuantError) else type(error).__name__
    tags = {"arrowquant.error": kind}
    if isinstance(error, ArrowQuantError):  # its message has no secrets
        tags["arrowquant.message"] = shortened(str(error), _TAG_CHARS)
    try:
        run.end("FAILED" if isinstance(error, Exception) else "KILLED", tags)
    except ArrowQuantError as failure:
        _logger.warning("%s", failure)
