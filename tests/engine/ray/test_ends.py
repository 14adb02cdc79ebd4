"""How runs end, in processes of their own, that cannot begin or are stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import CHECKOUT
from tests.engine.ray.clusters import SmallCluster
from tests.held_worker import hold_at
from tests.processes import is_alive
from tests.waiting import until

_DRIVER = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)
from arrowquant_dist.engine.ray import engine
from arrowquant_dist.engine.ray.actor import ShardActor
from arrowquant_dist.errors import ArrowQuantError
from tests.engine.ray.runs import start_run
from tests.engine.ray.held_actor import HeldActor
engine._TERMINATED_SECONDS = 60.0  # no SIGKILL follows here
run = start_run(Path(sys.argv[1]), shards=16)
address = sys.argv[2] if len(sys.argv) > 2 else None
try:
    run.engine(address, actor_class=ShardActor if address else HeldActor)
except ArrowQuantError as error:
    sys.exit(f"{error.kind}: {error}")
"""


def _driver(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _DRIVER, str(folder), *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_driver_that_is_stopped_takes_its_unfinished_parts_along(
    tmp_path: Path, number: signal.Signals
) -> None:
    hold_at(str(tmp_path / "target"), 4)
    driver = _driver(tmp_path)
    commits = tmp_path / "target" / "run" / "commits"
    until(lambda: len([*commits.glob("*.json")]) > 3 or driver.poll() is not None)
    below = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(number)
    _, told = driver.communicate()
    assert driver.returncode == 1
    assert "interrupted: interrupted; what is finished is kept, run the same command again to resume" in told
    files = [f for f in (tmp_path / "target" / "weights").rglob("*") if f.is_file()]
    assert 3 < len(files) < 16
    assert len(files) == len([*commits.glob("*.json")])
    until(lambda: not any(is_alive(process.pid) for process in below))


@pytest.mark.slow
def test_nodes_without_the_package_are_a_clear_error(tmp_path: Path) -> None:
    absent = (
        "raise ModuleNotFoundError(\"No module named 'arrowquant_dist'\")\n"  # also where it is installed
    )
    (tmp_path / "node").mkdir()
    (tmp_path / "node/arrowquant_dist.py").write_text(absent)
    cluster = SmallCluster(nodes=0)
    path, os.environ["PYTHONPATH"] = os.environ["PYTHONPATH"], str(tmp_path / "node")
    try:
        cluster.add()
        os.environ["PYTHONPATH"] = path
        _, told = _driver(tmp_path, cluster.address).communicate()
    finally:
        os.environ["PYTHONPATH"] = str(CHECKOUT)
        cluster.stop()
    assert "missing-dependency: the cluster's nodes cannot import what a worker needs" in told
    assert "arrowquant_dist" in told
    assert "--working-dir" in told
