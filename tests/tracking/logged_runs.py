"""Reads runs back from MLflow with its own client."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def client() -> Any:
    """A client of the store that the environment names, whatever another test has set in MLflow."""
    from mlflow import MlflowClient

    return MlflowClient(os.environ["MLFLOW_TRACKING_URI"])


def logged_runs(experiment: str = "0") -> list[Any]:
    """The logged runs, newest first."""
    return list(client().search_runs([experiment]))


def run_of(command: str) -> Any:
    """The only run of a command."""
    [found] = [run for run in logged_runs() if run.data.tags["mlflow.source.name"] == f"arrowquant {command}"]
    return found


def artifacts_of(run: Any, store: Path) -> dict[str, bytes]:
    """{name: content} of the artifacts in `report`."""
    [folder] = store.glob(f"*/{run.info.run_id}/artifacts/report")
    return {path.name: path.read_bytes() for path in folder.iterdir()}
