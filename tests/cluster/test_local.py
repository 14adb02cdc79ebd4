"""cluster/local.py starts several nodes on this machine, and leaves nothing of them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from tests.conftest import CHECKOUT
from tests.processes import is_alive

LOCAL = CHECKOUT / "cluster" / "local.py"
_SEEN = """
import json, ray
ray.init(log_to_driver=False, logging_level="ERROR")
print(json.dumps({node["NodeManagerAddress"]: node["Resources"].get("CPU", 0) for node in ray.nodes()}))
"""


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(LOCAL), *map(str, arguments)]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, **environment}
    )


@pytest.mark.slow
def test_it_is_a_head_without_cpus_and_workers_of_one_until_down(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    up = run("up", "--nodes", 1, "--state", state)
    assert up.returncode == 0, up.stderr
    cluster = json.loads(state.read_text())
    pids = [node["pid"] for node in cluster["nodes"]]
    families = [child.pid for pid in pids for child in psutil.Process(pid).children(recursive=True)]
    try:
        assert len(pids) == 2
        exports = dict(
            line.removeprefix("export ").split("=", 1) for line in up.stdout.splitlines() if "export " in line
        )
        seen = subprocess.run(
            [sys.executable, "-c", _SEEN],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, **exports},
        )
        assert sorted(json.loads(seen.stdout.splitlines()[-1]).values()) == [0, 1]
        again = run("up", "--state", state)
        assert again.returncode == 2
        assert "already running" in again.stderr
    finally:
        assert run("down", "--state", state).returncode == 0
    assert not [pid for pid in [*pids, *families] if is_alive(pid)]
    assert not Path(cluster["folder"]).exists()
    assert not state.exists()


def test_down_leaves_a_process_alone_that_only_has_the_pid_of_one_of_ours(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        node = {"name": "head", "pid": stranger.pid, "created": 1.0}
        folder = tmp_path / "folder"
        state.write_text(json.dumps({"address": "", "dashboard": "", "folder": str(folder), "nodes": [node]}))
        assert run("down", "--state", state).returncode == 0
        assert stranger.poll() is None
    finally:
        stranger.communicate()


def test_down_without_a_cluster_is_fine(tmp_path: Path) -> None:
    assert run("down", "--state", tmp_path / "state.json").returncode == 0


def test_a_node_that_does_not_come_up_is_one_line_with_its_reason_and_its_log() -> None:
    with socket.socket() as taken, tempfile.TemporaryDirectory() as folder:  # Ray's sockets need a short path
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run("run", "--nodes", 1, "--dashboard-port", port, "--", "true", TMPDIR=folder)
        assert done.returncode == 1
        [line] = done.stderr.splitlines()
        assert line.startswith("error: head ended while it was starting: ")
        assert str(port) in line
        [log] = Path(folder).glob("arrowquant-head-*.log")
        assert str(log) in line
        assert str(port) in log.read_text()
        assert not list(Path(folder).glob("aq-*"))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("run", "--", "no-such-command"), 2, "no-such-command"),
        (("run", "--nodes", "-1", "--", "true"), 2, "must be between 0 and 250"),
        (("run", "--dashboard-port", "99999", "--", "true"), 2, "must be between 0 and 65535"),
        (("down", "--state", CHECKOUT / "README.md"), 1, "was not written by `up`"),
    ],
)
def test_what_cannot_work_is_one_line(arguments: tuple[object, ...], code: int, said: str) -> None:
    done = run(*arguments)
    assert done.returncode == code
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
