"""A head without CPUs, on which Ray's own autoscaler starts and ends nodes on this machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import psutil

from tests.servers.ports import free_ports
from tests.servers.processes import ServerProcess

_STORE_NBYTES = 80 << 20
_NODE_NBYTES = 1 << 30
_HEAD, _NODE = "ray.head.default", "cpu"
_PROVIDER = "tests.engine.ray.node_provider.LocalNodes"
# Settings that `ray up` would fill in.
_EMPTY_LISTS = (
    *("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files"),
    *("rsync_exclude", "rsync_filter"),
)


class AutoscaledCluster:
    """A cluster that starts without worker nodes. nodes: number of nodes of 1 CPU that the autoscaler may start at
    most."""

    def __init__(self, folder: Path, nodes: int) -> None:
        (port,) = free_ports(1)
        self.address = f"127.0.0.1:{port}"
        self._config, self._nodes = folder / "autoscaler.json", nodes
        self._keep_idle_nodes(minutes=60.0)
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=0"]
        command += [f"--port={port}", "--node-ip-address=127.0.0.1", f"--autoscaling-config={self._config}"]
        command += [f"--object-store-memory={_STORE_NBYTES}", "--include-dashboard=false"]
        environment = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", **self.environment}
        log = folder / "log.txt"
        self._head = ServerProcess(
            command, folder, lambda: "runtime started" in log.read_text(errors="replace"), environment
        )

    @property
    def environment(self) -> dict[str, str]:
        """Environment of processes that connect to it; it requires no token."""
        return {"RAY_AUTH_MODE": "disabled"}

    def end_idle_nodes(self) -> None:
        """Ends idle nodes from now on. Before, a node that waits for its worker to start would count as idle."""
        self._keep_idle_nodes(minutes=0.02)

    @property
    def nodes(self) -> int:
        """Number of raylets apart from the head's."""
        return sum(map(_is_raylet, self._family())) - 1

    def stop(self) -> None:
        """Ends the head and with it the nodes: they are children of the autoscaler, which is a child of the head."""
        family = self._family()
        self._head.kill()
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(family, 10)

    def _keep_idle_nodes(self, minutes: float) -> None:
        """Sets the idle timeout. The autoscaler reads its configuration again in each of its rounds."""
        new = self._config.with_suffix(".new")
        new.write_text(json.dumps(_config(self.address, self._nodes, minutes)))
        new.replace(self._config)

    def _family(self) -> list[psutil.Process]:
        return list(psutil.Process(self._head.pid).children(recursive=True))


def _is_raylet(process: psutil.Process) -> bool:
    try:
        return bool(process.name() == "raylet" and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _config(address: str, nodes: int, idle_minutes: float) -> dict[str, Any]:
    """A configuration for the cluster launcher; file_mounts and the like are empty."""
    node = {
        "resources": {"CPU": 1, "memory": _NODE_NBYTES, "object_store_memory": _STORE_NBYTES},
        "node_config": {},
        "min_workers": 0,
        "max_workers": nodes,
    }
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    return {
        "cluster_name": "tests",
        "max_workers": nodes,
        "upscaling_speed": 20,
        "idle_timeout_minutes": idle_minutes,
        "provider": {
            "type": "external",
            "module": _PROVIDER,
            "gcs_address": address,
            "launch_multiple": True,
            "use_node_id_as_ip": True,  # all nodes have the same address
            "disable_node_updaters": True,
        },
        "available_node_types": {_HEAD: head, _NODE: node},
        "head_node_type": _HEAD,
        "auth": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "docker": {},
        "no_restart": False,
        **{name: [] for name in _EMPTY_LISTS},
    }
