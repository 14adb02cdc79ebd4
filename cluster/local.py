"""A Ray cluster of several nodes on this machine, for development: a head without CPUs, worker nodes of one CPU each.

    python cluster/local.py up --nodes 2       starts it, prints its addresses, returns
    python cluster/local.py down               stops what `up` started, and nothing else
    python cluster/local.py run --nodes 2 -- python cluster/submit.py -- quantize minilm /tmp/minilm-int8
                                               starts it, runs a command that finds it, stops it

Each node is a raylet of its own with an address of its own, 127.0.0.2 and up, as if it were a machine of its own: kill
one and see what happens. Free ports are used. The cluster requires a token that only this user can read (Ray 2.52 and
later), since anyone who can reach a job server can run anything. Linux only: elsewhere Ray has no clusters of several
nodes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import psutil

START_SECONDS = 90
STOP_SECONDS = 20
_ACCESS = "access"  # name of the file with the cluster's token
_TELLING = re.compile(r"error|exception|fail|refus|denied|can't|cannot|unable|in use", re.IGNORECASE)
_LINE_CHARS = 300
_STORE_NBYTES = 80 << 20  # the least that Ray accepts; a run puts no weights there


class NotStarted(Exception):
    """A node did not come up. The message says why, and where its whole log is."""


@dataclass(frozen=True, slots=True)
class Node:
    """A process `ray start --block`, whose children are the node.

    created: its start time, which tells it from a later process with the same pid.
    """

    name: str
    pid: int
    created: float


@dataclass(frozen=True, slots=True)
class LocalCluster:
    """A cluster that is up.

    address: address of the cluster, for `--address` and ray.init. dashboard: URL of the job server. folder: the folder
    of its logs and its token.
    """

    address: str
    dashboard: str
    folder: str
    nodes: tuple[Node, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> LocalCluster:
        values = json.loads(text)
        return cls(**{**values, "nodes": tuple(Node(**node) for node in values["nodes"])})

    @property
    def environment(self) -> dict[str, str]:
        """Ray's own variables by which a command finds the cluster and is let in."""
        addresses = {"RAY_ADDRESS": self.address, "RAY_API_SERVER_ADDRESS": self.dashboard}
        return {**addresses, **_auth(Path(self.folder))}


def start(nodes: int, dashboard_port: int) -> LocalCluster:
    """Starts a head and `nodes` worker nodes, and returns when they answer. dashboard_port: 0 takes a free one.

    Raises NotStarted if a node does not come up. Then all that was started is stopped, and only that node's log stays.
    """
    folder = Path(
        tempfile.mkdtemp(prefix="aq-")
    )  # short: Ray creates sockets in it, whose paths have a limit
    gcs, dashboard = _free_port(), dashboard_port or _free_port()
    cluster = LocalCluster(f"{_host(0)}:{gcs}", f"http://127.0.0.1:{dashboard}", str(folder), ())
    head = ["--head", f"--port={gcs}", "--num-cpus=0", "--disable-usage-stats"]
    head += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    head += [f"--ray-client-server-port={_free_port()}"]
    worker = [f"--address={cluster.address}", "--num-cpus=1"]
    with ExitStack() as undo:
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        (folder / _ACCESS).touch(0o600)
        (folder / _ACCESS).write_text(secrets.token_hex(32))
        started = [_start_node(0, head, cluster, undo)]
        _wait(lambda: _answers(cluster), started[0], folder)
        for index in range(1, nodes + 1):  # one by one: otherwise they take the same names in Ray's folder
            started.append(_start_node(index, worker, cluster, undo))
            log = _log(folder, started[-1].name)
            _wait(partial(_is_in, log, "runtime started"), started[-1], folder)
        undo.pop_all()
    return replace(cluster, nodes=tuple(started))


def stop(cluster: LocalCluster) -> None:
    """Ends the nodes, workers first, by the pids that `start` noted, and removes their folder."""
    for node in reversed(cluster.nodes):
        _stop_node(node)
    shutil.rmtree(cluster.folder, ignore_errors=True)


@contextmanager
def running(nodes: int, dashboard_port: int) -> Iterator[LocalCluster]:
    """A cluster that is stopped when the block ends, however it ends."""
    cluster = start(nodes, dashboard_port)
    try:
        yield cluster
    finally:
        stop(cluster)


def _start_node(index: int, arguments: Sequence[str], cluster: LocalCluster, undo: ExitStack) -> Node:
    name, folder = f"worker-{index}" if index else "head", Path(cluster.folder)
    ports = ["node-manager-port", "object-manager-port", "dashboard-agent-listen-port"]
    ports += ["dashboard-agent-grpc-port", "runtime-env-agent-port", "metrics-export-port"]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *arguments]
    # A folder each, as on separate machines: in a shared one, a node unpacks a job's package while another reads it.
    command += [f"--temp-dir={folder}/{name}", f"--node-ip-address={_host(index)}"]
    command += [f"--object-store-memory={_STORE_NBYTES}"]
    command += ["--min-worker-port=0", "--max-worker-port=0", *(f"--{port}={_free_port()}" for port in ports)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # a job's `python` is this one
    pid = os.posix_spawn(
        sys.executable,
        command,
        {**os.environ, **_auth(folder), "PATH": path},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(_log(folder, name)), os.O_WRONLY | os.O_CREAT, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,  # Ctrl-C is for the command that is run, not for its cluster
    )
    node = Node(name, pid, psutil.Process(pid).create_time())
    undo.callback(_stop_node, node)
    return node


def _stop_node(node: Node) -> None:
    """Sends SIGTERM, on which `ray start --block` ends its processes; kills those that are left after STOP_SECONDS."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(node.pid)
        if process.create_time() != node.created:
            return
        family = [process, *process.children(recursive=True)]
        process.terminate()
        _, alive = psutil.wait_procs(family, STOP_SECONDS)
        for left in alive:
            with suppress(psutil.NoSuchProcess):
                left.kill()
        psutil.wait_procs(alive, STOP_SECONDS)


def _wait(is_ready: Callable[[], bool], node: Node, folder: Path) -> None:
    deadline, log = time.monotonic() + START_SECONDS, _log(folder, node.name)
    while not is_ready():
        if not _is_running(node):
            raise _not_started(f"{node.name} ended while it was starting", log)
        if time.monotonic() > deadline:
            raise _not_started(f"{node.name} did not start within {START_SECONDS} s", log)
        time.sleep(0.1)


def _not_started(what: str, log: Path) -> NotStarted:
    """An error with the last line of the log that mentions a failure, or else the last line; keeps a copy of the log
    outside the cluster's folder."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if _TELLING.search(line)] or lines
    said = telling[-1][:_LINE_CHARS] if telling else "the log is empty"
    descriptor, kept = tempfile.mkstemp(prefix=f"arrowquant-{log.stem}-", suffix=".log")
    os.close(descriptor)
    shutil.copyfile(log, kept)
    return NotStarted(f"{what}: {said} (its log is {kept})")


def _is_running(node: Node) -> bool:
    try:
        process = psutil.Process(node.pid)
        return bool(process.create_time() == node.created and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _is_in(log: Path, text: str) -> bool:
    return text in log.read_text()


def _answers(cluster: LocalCluster) -> bool:
    token = (Path(cluster.folder) / _ACCESS).read_text()
    request = urllib.request.Request(  # noqa: S310 an http URL, made above
        f"{cluster.dashboard}/api/version", headers={"Authorization": f"Bearer {token}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=2) as response:  # noqa: S310
            return bool(response.status == 200)
    except OSError:
        return False


def _auth(folder: Path) -> dict[str, str]:
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / _ACCESS)}


def _log(folder: Path, name: str) -> Path:
    return folder / f"{name}.log"


def _host(index: int) -> str:
    """A node's address, not 127.0.0.1 itself: Ray would replace that with one that other machines can reach."""
    return f"127.0.0.{index + 2}"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _up(options: argparse.Namespace) -> int:
    state: Path = options.state
    if state.exists():
        cluster = _noted(state)
        if any(map(_is_running, cluster.nodes)):
            print(f"a cluster is already running at {cluster.address}; stop it with `down`", file=sys.stderr)
            return 2
        stop(cluster)
    cluster = start(options.nodes, options.dashboard_port)
    state.write_text(cluster.to_json())
    _show(cluster)
    return 0


def _noted(state: Path) -> LocalCluster:
    """The cluster that `up` noted. Raises ValueError for a file that is something else."""
    try:
        return LocalCluster.from_json(state.read_text())
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{state} was not written by `up`; remove it") from error


def _down(options: argparse.Namespace) -> int:
    state: Path = options.state
    if not state.exists():
        print("no cluster is running", file=sys.stderr)
        return 0
    stop(_noted(state))
    state.unlink()
    return 0


def _run(options: argparse.Namespace) -> int:
    if shutil.which(options.command[0]) is None:
        print(f"error: the command {options.command[0]!r} was not found", file=sys.stderr)
        return 2
    with running(options.nodes, options.dashboard_port) as cluster:
        try:
            return subprocess.run(
                options.command, check=False, env={**os.environ, **cluster.environment}
            ).returncode
        except KeyboardInterrupt:
            return 1


def _show(cluster: LocalCluster) -> None:
    print(
        f"cluster    {cluster.address}  ({len(cluster.nodes) - 1} worker nodes of 1 CPU, a head without CPUs)"
    )
    print(f"job server {cluster.dashboard}")
    for name, value in cluster.environment.items():
        print(f"export {name}={value}")


def _between(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be between {least} and {most}, not {value}")
        return value

    return number


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="up|down|run")
    default_state = Path(tempfile.gettempdir()) / f"arrowquant-cluster-{os.getuid()}.json"
    for name, act, about in (
        ("up", _up, "start a cluster"),
        ("down", _down, "stop it"),
        ("run", _run, "start one, run a command, stop it"),
    ):
        command = commands.add_parser(name, help=about)
        command.set_defaults(act=act)
        if name != "down":
            command.add_argument(
                "--nodes", type=_between(0, 250), default=2, help="number of worker nodes (default 2)"
            )
            command.add_argument(
                "--dashboard-port",
                type=_between(0, 65535),
                default=0,
                help="port of the dashboard (default: a free one)",
            )
        if name == "run":
            command.add_argument("command", nargs="+", metavar="-- COMMAND")
        else:
            command.add_argument(
                "--state", type=Path, default=default_state, help="file in which `up` notes its pids"
            )
    options = parser.parse_args(arguments)
    try:
        return int(options.act(options))
    except (NotStarted, OSError, ValueError, psutil.Error) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
