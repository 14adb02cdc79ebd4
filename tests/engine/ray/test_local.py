"""The Ray that a run starts for itself: see arrowquant_dist.engine.ray.cluster."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import psutil
import pytest

from arrowquant_dist.engine.ray.cluster import WORKER_ENVIRONMENT
from arrowquant_dist.errors import PartialRun
from tests.engine.ray.runs import Run

_LOCAL = """
import json, os
import psutil, ray
from ray._private.node import Node
from arrowquant_dist.engine.ray.cluster import WORKER_ENVIRONMENT, connect

connect(None, 1)
variables = ray.get(ray.remote(lambda: {name: os.environ.get(name) for name in WORKER_ENVIRONMENT}).remote())
running = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
here = {name: os.environ.get(name) for name in WORKER_ENVIRONMENT}
ray.shutdown()
methods = [getattr(Node, name).__name__ for name in ("start_api_server", "start_monitor", "start_log_monitor")]
ray_variables = [name for name in os.environ if name.startswith("RAY_raylet")]
said = {"variables": variables, "here": here, "running": running, "methods": methods, "ray_variables": ray_variables}
print(json.dumps(said))
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


def test_it_runs_nothing_that_it_has_no_use_for(local: dict[str, list[str]]) -> None:
    assert any("raylet" in line for line in local["running"])
    assert not [line for line in local["running"] if re.search(r"monitor\.py|dashboard/dashboard\.py", line)]


def test_a_ray_that_the_caller_starts_later_is_whole(local: dict[str, list[str]]) -> None:
    assert local["methods"] == ["start_api_server", "start_monitor", "start_log_monitor"]
    assert not local["ray_variables"]


@pytest.mark.slow
def test_a_ray_of_its_own_whose_node_is_gone_ends_the_run_in_time(run: Run) -> None:
    def lose_the_node() -> None:
        with run.at_work(None, after=1):
            for process in psutil.Process().children(recursive=True):
                if process.name() == "raylet":
                    process.kill()
            run.wait_alive(0)
            run.pass_seconds(10.0)

    with pytest.raises(PartialRun, match=r"no node is left .* Ray's logs .* run the same command again"):
        lose_the_node()
