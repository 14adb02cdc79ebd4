"""The Ray that a run starts for itself: see arrowquant_dist.engine.ray.cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from arrowquant_dist.engine.ray.cluster import WORKER_ENVIRONMENT

_LOCAL = """
import json, os
import psutil, ray
from arrowquant_dist.engine.ray.cluster import WORKER_ENVIRONMENT, connect

connect(None, 1)
variables = ray.get(ray.remote(lambda: {name: os.environ.get(name) for name in WORKER_ENVIRONMENT}).remote())
running = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
here = {name: os.environ.get(name) for name in WORKER_ENVIRONMENT}
ray.shutdown()
print(json.dumps({"variables": variables, "here": here, "running": running}))
"""


@pytest.fixture(scope="module")
def local() -> dict[str, object]:
    environment = {**os.environ, "OMP_NUM_THREADS": "7"}
    done = subprocess.run(
        [sys.executable, "-c", _LOCAL], capture_output=True, text=True, env=environment, check=True
    )
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_its_workers_have_one_thread_and_the_caller_keeps_its_own(local: dict[str, dict[str, str]]) -> None:
    assert local["variables"] == WORKER_ENVIRONMENT
    assert local["here"]["OMP_NUM_THREADS"] == "7"


def test_it_runs_no_autoscaler(local: dict[str, list[str]]) -> None:
    assert any("raylet" in line for line in local["running"])
    assert not [line for line in local["running"] if "monitor.py" in line and "log_monitor" not in line]
