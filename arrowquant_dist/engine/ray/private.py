"""What the engine uses of Ray beyond its public API. Nothing else here touches a private name of Ray.

Written for Ray 2.60. If a later Ray lacks a name, a run does without it and makes the same dataset, and one line in
the log says what is missing: a local Ray takes two seconds longer to start; the number of workers follows the
existing nodes, not those that an autoscaler may add; a node's end is noticed only when its actors die.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import ray

# Those of Ray's processes that a local run has no use for: without a dashboard, the API server only reports usage; the
# autoscaler has nothing to add; and the workers' output stays in their files. They take 2 s to start and to end.
_NEEDLESS = ("start_api_server", "start_monitor", "start_log_monitor")
_UNBOUNDED = 1 << 31  # CPUs: an autoscaler without an upper bound reports at least so many
_log = logging.getLogger("arrowquant_dist.engine")


@contextmanager
def without_needless_processes() -> Iterator[None]:
    """Context manager: a Ray started meanwhile in this process leaves these processes out."""
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
    """CPUs of all nodes that the autoscaler may add; 0 without one, without a bound, or if Ray does not tell."""
    ask = getattr(_named("ray._private.state", "state"), "get_max_resources_from_cluster_config", None)
    if ask is None:
        _say_without(
            "state.get_max_resources_from_cluster_config", "workers are counted by the nodes present now"
        )
        return 0
    cpus = int((ask() or {}).get("CPU", 0))
    return cpus if cpus < _UNBOUNDED else 0


def draining_nodes() -> set[str]:
    """Ids of nodes that were told to go: preempted, or scaled down. Empty if Ray does not tell."""
    ask = getattr(_named("ray._private.state", "state"), "get_draining_nodes", None)
    if ask is None:
        _say_without("state.get_draining_nodes", "nodes about to go are used until they are gone")
        return set()
    return set(ask())


def _named(module: str, name: str) -> Any:
    """The object of this name; None if this Ray lacks it."""
    try:
        return getattr(import_module(module), name, None)
    except ImportError:
        return None


_said: set[str] = set()


def _say_without(name: str, instead: str) -> None:
    """Logs this once per process, since draining nodes are asked for every few seconds."""
    if name not in _said:
        _said.add(name)
        _log.warning("Ray %s has no %s (private, used by 2.60): %s", ray.__version__, name, instead)
