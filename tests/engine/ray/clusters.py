"""A Ray cluster of several nodes on this machine, from which tests remove, drain and to which they add nodes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

_STORE_NBYTES = 80 << 20
METRICS_MILLISECONDS = 500


class SmallCluster:
    """A head without CPUs, and `nodes` nodes of 1 CPU. settings: Ray's own settings, for all nodes."""

    def __init__(self, nodes: int, **settings: float) -> None:
        head = {
            "num_cpus": 0,
            "object_store_memory": _STORE_NBYTES,
            "include_dashboard": False,
            "_system_config": {
                "metrics_report_interval_ms": METRICS_MILLISECONDS,
                "health_check_period_ms": 1000,  # notices a lost node within seconds, not after 15
                "health_check_failure_threshold": 3,
                **settings,
            },
        }
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes: list[Any] = []
        self._draining: list[Any] = []
        self.fill(nodes)

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self, **options: Any) -> Any:
        """Adds a node of 1 CPU."""
        node = self._cluster.add_node(
            num_cpus=1, object_store_memory=_STORE_NBYTES, memory=2 << 30, **options
        )
        self.nodes.append(node)
        return node

    def fill(self, nodes: int) -> None:
        """Adds nodes until `nodes` of them take work."""
        for node in [node for node in self.nodes if node in self._draining]:
            self.lose(node)
        while len(self.nodes) < nodes:
            self.add()

    def lose(self, node: Any) -> None:
        """Kills the node with all its processes at once."""
        self.nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def drain(self, node: Any) -> None:
        """Tells Ray that the node will be preempted."""
        ray = str(Path(sys.executable).with_name("ray"))
        why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        which = ["--address", self.address, "--node-id", node.node_id, "--deadline-remaining-seconds", "600"]
        self._draining.append(node)
        subprocess.run([ray, "drain-node", *which, *why], check=True, capture_output=True)

    def stop(self) -> None:
        self._cluster.shutdown()


def name_of(node: Any, names: tuple[str, ...]) -> bool:
    """Whether this node is among `names`, which are those of EngineFacts.nodes."""
    return any(name.endswith(f"/{node.node_id[:8]}") for name in names)
