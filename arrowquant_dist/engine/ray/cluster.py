"""The cluster as it is: connecting to it, how many workers it holds, which nodes are about to go."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray

from arrowquant_dist.engine.ray import private
from arrowquant_dist.errors import InvalidConfig, MissingDependency, StorageError, counted
from arrowquant_dist.machine import usable_cpus

UNKNOWN_CLUSTER_WORKERS = 8  # asked for where there is no CPU yet, and nobody says how many there can be
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
# glibc keeps up to 60 MiB of freed memory, by its sizes and order: a worker's peak would depend on the model. What it
# gives back has to be touched anew each time, which huge pages make cheap. Other systems' libraries ignore this.
_LARGE_PIECES = {"GLIBC_TUNABLES": f"glibc.malloc.mmap_threshold={1 << 20}:glibc.malloc.hugetlb=1"}
WORKER_ENVIRONMENT = {**_ONE_THREAD, **_LARGE_PIECES}
_LOCAL_STORE_NBYTES = 80 << 20
# A raylet looks for its object store before that listens, and then again after a second; here 50 times as often.
_QUICK_START = {
    "RAY_raylet_client_connect_timeout_milliseconds": "20",
    "RAY_raylet_client_num_connect_attempts": "500",
}
_OTHER_VERSION = "Version mismatch"
_log = logging.getLogger("arrowquant_dist.engine")


def connect(address: str | None, workers: int | None) -> None:
    """Joins the cluster at `address`; None starts a Ray on this machine. StorageError, InvalidConfig."""
    if address is None:
        _start_local(workers or usable_cpus())
        return
    if address.startswith(("ray://", "http://", "https://")):
        message = (
            f"address: {address!r} is no address of a cluster to run on; give the head's host:6379, or submit the "
            "command with `ray job submit`"
        )
        raise InvalidConfig(message)
    _init(address)


def _start_local(cpus: int) -> None:
    """A Ray of our own, whose processes have WORKER_ENVIRONMENT: to make one for its workers takes half a second."""
    with _environment(WORKER_ENVIRONMENT | _QUICK_START), private.without_needless_processes():
        _init("local", num_cpus=cpus, object_store_memory=_LOCAL_STORE_NBYTES, include_dashboard=False)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets variables of this process for what it starts meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _init(address: str, **options: Any) -> None:
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        if _OTHER_VERSION in str(error):
            message = (
                f"the cluster runs another version of Ray or Python ({_one_line(error)}); use the same here"
            )
            raise MissingDependency(message) from error
        message = f"no Ray cluster can be reached ({_one_line(error)}); check --address"
        raise StorageError(message, uri=address) from error


def default_workers() -> int:
    """As many as the cluster has CPUs, or will have once its autoscaler has added every node that it may."""
    workers = max(int(ray.cluster_resources().get("CPU", 0)), private.autoscaled_cpus())
    if workers:
        return workers
    _log.warning("the cluster has no CPUs yet; asking for %d workers (--workers N)", UNKNOWN_CLUSTER_WORKERS)
    return UNKNOWN_CLUSTER_WORKERS


def most_cpus(workers: int, nodes: Iterable[Mapping[str, float]], memory_nbytes: int | None) -> int:
    """That each of so many workers can have, all at once; 0 where there is no room for them. nodes: their resources."""
    every = [*nodes]
    largest = max((int(node.get("CPU", 0)) for node in every), default=0)
    return max(
        (cpus for cpus in range(1, largest + 1) if _held(every, cpus, memory_nbytes) >= workers), default=0
    )


def _held(nodes: Iterable[Mapping[str, float]], cpus: int, memory_nbytes: int | None) -> int:
    """Workers of so many CPUs that these nodes hold."""
    found = 0
    for node in nodes:
        by_cpus = int(node.get("CPU", 0)) // cpus
        by_memory = int(node.get("memory", 0)) // memory_nbytes if memory_nbytes else by_cpus
        found += min(by_cpus, by_memory)
    return found


def has_room(memory_nbytes: int | None) -> bool:
    """Whether a node is there that could hold a worker if it did nothing else."""
    return any(_fits(node["Resources"], memory_nbytes) for node in ray.nodes() if node["Alive"])


def no_room_message(memory_nbytes: int | None) -> str:
    """What a worker needs and what there is."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not alive:
        return "no node is left that a worker could be on"
    cpus = max((int(node.get("CPU", 0)) for node in alive), default=0)
    memory = max((node.get("memory", 0) for node in alive if node.get("CPU", 0) >= 1), default=0)
    needs = "1 CPU" + (f" and {in_mib(memory_nbytes)}" if memory_nbytes else "")
    has = f"the largest has {counted(cpus, 'CPU')}" + (f" and {in_mib(memory)}" if cpus else "")
    return f"no node can hold a worker: it needs {needs}, and of the cluster's {counted(len(alive), 'node')} {has}"


def _fits(resources: Mapping[str, float], memory_nbytes: int | None) -> bool:
    return resources.get("CPU", 0) >= 1 and resources.get("memory", 0) >= (memory_nbytes or 0)


def in_mib(nbytes: float) -> str:
    return f"{nbytes / (1 << 20):.0f} MiB"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
