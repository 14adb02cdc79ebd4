"""A run of MLflow; the only module that imports it."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

from arrowquant_dist.errors import ArrowQuantError, MissingDependency, shortened
from arrowquant_dist.storage.uris import redact

PLACE_VARIABLE = "MLFLOW_TRACKING_URI"
_RETRIES_VARIABLE, _RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"  # its own default takes minutes
_REASON_CHARS = 300
_BATCH = 1000  # number of metrics that a server takes at a time
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_SECRETS = re.compile(r"(?<=://)[^/@\s]*@|[?#]\S*")

EndStatus = Literal["FINISHED", "FAILED", "KILLED"]


def tracking_place() -> str | None:
    """The tracking server that the environment names; None where it names none."""
    return os.environ.get(PLACE_VARIABLE) or None


class StepMetric(NamedTuple):
    """Value of a metric at a step. at_ms: Unix time in milliseconds."""

    name: str
    value: float
    step: int
    at_ms: int


class TrackedRun:
    """A run on the server. Every method raises ArrowQuantError, with one sentence, where the server does not accept
    what it is sent."""

    def __init__(self, client: Any, run_id: str, place: str) -> None:
        self._client, self._id, self._place = client, run_id, place

    @classmethod
    def start(
        cls,
        place: str,
        name: str,
        params: Mapping[str, str],
        tags: Mapping[str, str],
        below: tuple[str, str] | None = None,
    ) -> TrackedRun:
        """Starts a run in the experiment of MLFLOW_EXPERIMENT_ID or MLFLOW_EXPERIMENT_NAME. If a run is open in this
        process, the new one is its child, in its experiment, and the other stays open.

        below: a tag and its value: if no run is open, the new one is a child of the first run in the experiment that
        has the tag, if there is one. Raises MissingDependency without MLflow, or without what it needs for such a
        place.
        """
        try:
            import mlflow
            from mlflow import MlflowClient
        except ImportError as error:
            message = (
                f"{PLACE_VARIABLE} is set, but MLflow is not installed ({error.name}): "
                "pip install 'arrowquant-dist[mlflow]', or unset it"
            )
            raise MissingDependency(message) from error
        _refuse_missing_database(place)
        with _understood(place, f"; check {PLACE_VARIABLE}, or unset it"), _few_retries():
            client, open_run = MlflowClient(place), mlflow.active_run()
            experiment = _experiment(client) if open_run is None else open_run.info.experiment_id
            above = (
                open_run if open_run is not None or below is None else _first_run(client, experiment, *below)
            )
            parent = {"mlflow.parentRunId": above.info.run_id} if above is not None else {}
            made = client.create_run(experiment, tags={**tags, **parent}, run_name=name)
            run = cls(client, made.info.run_id, place)
            client.log_batch(run._id, params=[mlflow.entities.Param(*each) for each in params.items()])
        return run

    def log(self, metrics: Mapping[str, float], tags: Mapping[str, str], files: Mapping[str, bytes]) -> None:
        """Reports results. files: {name: content}, which become artifacts in `report`."""
        import mlflow

        with _understood(self._place):
            now = int(1000 * time.time())
            self._client.log_batch(
                self._id,
                metrics=[mlflow.entities.Metric(name, value, now, 0) for name, value in metrics.items()],
                tags=[mlflow.entities.RunTag(*each) for each in tags.items()],
            )
            with tempfile.TemporaryDirectory() as folder:
                for name, content in files.items():
                    Path(folder, name).write_bytes(content)
                self._client.log_artifacts(self._id, folder, "report")

    def log_steps(self, metrics: Sequence[StepMetric]) -> None:
        """Reports metrics of steps. Fails within seconds where the server is lost."""
        import mlflow

        with _understood(self._place), _few_retries():
            for start in range(0, len(metrics), _BATCH):
                batch = [
                    mlflow.entities.Metric(each.name, each.value, each.at_ms, each.step)
                    for each in metrics[start : start + _BATCH]
                ]
                self._client.log_batch(self._id, metrics=batch)

    def end(self, status: EndStatus, tags: Mapping[str, str] | None = None) -> None:
        """Ends the run. tags: tags that say why."""
        with _understood(self._place):
            for name, value in (tags or {}).items():
                self._client.set_tag(self._id, name, value)
            self._client.set_terminated(self._id, status)


def _refuse_missing_database(place: str) -> None:
    """Raises MissingDependency if the place is a database and only MLflow's client is installed, as by the extra. The
    client itself says that the URI is not supported."""
    if place.partition(":")[0].partition("+")[0] in _DATABASES and find_spec("sqlalchemy") is None:
        message = (
            f"the extra [mlflow] is only MLflow's client, which does not open databases: pip install mlflow, or name a "
            f"server in {PLACE_VARIABLE}"
        )
        raise MissingDependency(message, uri=redact(place))


def _experiment(client: Any) -> str:
    """Id of the experiment that the environment names; it is created if only a new name is given."""
    said = os.environ.get("MLFLOW_EXPERIMENT_ID")
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if said or not name:
        return said or "0"
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found is not None else client.create_experiment(name))


def _first_run(client: Any, experiment: str, tag: str, value: str) -> Any:
    """The run with the tag that began first; None where there is none, or where the value cannot be searched for."""
    if not value.isalnum():
        return None
    first = ["attributes.start_time ASC"]
    found = client.search_runs([experiment], f"tags.`{tag}` = '{value}'", order_by=first, max_results=1)
    return found[0] if found else None


@contextmanager
def _few_retries() -> Iterator[None]:
    """Makes a missing server known within seconds, unless the user has set a number of retries."""
    if _RETRIES_VARIABLE in os.environ:
        yield
        return
    os.environ[_RETRIES_VARIABLE] = _RETRIES
    try:
        yield
    finally:
        os.environ.pop(_RETRIES_VARIABLE, None)


@contextmanager
def _understood(place: str, advice: str = "") -> Iterator[None]:
    """Turns errors of MLflow, and of storages and servers behind it, into one of ours without what may be secret."""
    try:
        yield
    except ImportError as error:
        message = f"MLflow needs {error.name} for this tracking server: pip install mlflow{advice}"
        raise MissingDependency(message, uri=redact(place)) from error
    except Exception as error:  # noqa: BLE001 - what stands behind MLflow has errors of its own
        said = _SECRETS.sub("", " ".join(str(error).split())) or type(error).__name__
        message = f"MLflow does not accept what it is sent ({shortened(said, _REASON_CHARS)}){advice}"
        raise ArrowQuantError(message, uri=redact(place)) from None
