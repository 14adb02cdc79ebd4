"""What the engine uses of Ray beyond its public API. Nothing else here touches a private name of Ray.

Written for Ray 2.60. Where a later Ray has a name no more, a run goes without it, to the same dataset, and one line in
the log says what it does without: a local Ray that takes two seconds longer to start, a number of workers that counts
the nodes that are there and not those that an autoscaler may add, a node's end that is learnt of when its actors die.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import ray

# Of Ray's processes, those a local run has no use for: without a dashboard its API server reports usage and no more,
# the autoscaler has nothing to add, and the workers' output stays in their files. They take 2 s to start, and to end.
_NEEDLESS = ("start_api_server", "start_monitor", "start_log_monitor")
_UNBOUNDED = 1 << 31  # CPUs: what an autoscaler without an upper bound answers, at least
_log = logging.getLogger("arrowquant_dist.engine")


@contextmanager
def without_needless_processes() -> Iterator[None]:
    """A Ray that is started meanwhile in this process leaves them out."""
    node = _named("ray._private.node", "Node")
    kept = {name: getattr(node, name) for name in _NEEDLESS if hasattr(node, name)}
    if missing := sorted(set(_NEEDLESS) - set(kept)):
        _say_without(f"Node.{', '.join(missing)}", "its local processes are all started")
    for name in kept:
        setattr(node, name, lambda *_args, **_options: None)
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(node, name, method)


def autoscaled_cpus() -> int:
    """CPUs of all nodes that the autoscaler may add; 0 where there is none, it has no upper bound, or nobody says."""
    ask = getattr(_named("ray._private.state", "state"), "get_max_resources_from_cluster_config", None)
    if ask is None:
        _say_without(
            "state.get_max_resources_from_cluster_config", "workers are counted by nodes that are there"
        )
        return 0
    cpus = int((ask() or {}).get("CPU", 0))
    return cpus if cpus < _UNBOUNDED else 0


def draining_nodes() -> set[str]:
    """Ids of nodes that were told to go: preempted, or scaled down. Empty where nobody says."""
    ask = getattr(_named("ray._private.state", "state"), "get_draining_nodes", None)
    if ask is None:
        _say_without("state.get_draining_nodes", "nodes about to go are used until they are gone")
        return set()
    return set(ask())


def _named(module: str, name: str) -> Any:
    """None where this Ray has no such thing."""
    try:
        return getattr(import_module(module), name, None)
    except ImportError:
        return None


_said: set[str] = set()


def _say_without(name: str, instead: str) -> None:
    """Once a process: draining nodes are asked for every few seconds."""
    if name not in _said:
        _said.add(name)
        _log.warning("Ray %s has no %s (private, used by 2.60): %s", ray.__version__, name, instead)
