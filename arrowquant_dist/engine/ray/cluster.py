"""Connects to a cluster, and tells how many workers it holds and which resources its nodes have."""

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

UNKNOWN_CLUSTER_WORKERS = 8  # requested if the cluster has no CPU yet and its maximum is unknown
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
# glibc keeps up to 60 MiB of freed memory, depending on its sizes and order, so a worker's peak would depend on the
# model. Memory that is returned instead has to be faulted in again each time, which huge pages make cheap. Other C
# libraries ignore this.
_LARGE_PIECES = {"GLIBC_TUNABLES": f"glibc.malloc.mmap_threshold={1 << 20}:glibc.malloc.hugetlb=1"}
WORKER_ENVIRONMENT = {**_ONE_THREAD, **_LARGE_PIECES}
_LOCAL_STORE_NBYTES = 80 << 20
# A raylet connects to its object store before that listens, and retries after a second; this makes it 20 ms.
_QUICK_START = {
    "RAY_raylet_client_connect_timeout_milliseconds": "20",
    "RAY_raylet_client_num_connect_attempts": "500",
}
_OTHER_VERSION = "Version mismatch"
_log = logging.getLogger("arrowquant_dist.engine")


def connect(address: str | None, workers: int | None) -> None:
    """Joins the cluster at `address`; None starts a Ray on this machine. Raises StorageError and InvalidConfig."""
    if address is None:
        _start_local(workers or usable_cpus())
        return
    if address.startswith(("ray://", "http://", "https://")):
        message = (
            f"address: {address!r} can't be used to run on a cluster; use the head's host:6379, or submit the command "
            "with `ray job submit`"
        )
        raise InvalidConfig(message)
    _init(address)


def _start_local(cpus: int) -> None:
    """Starts a Ray of our own whose processes all have WORKER_ENVIRONMENT: setting it up for the workers alone takes
    half a second."""
    with _environment(WORKER_ENVIRONMENT | _QUICK_START), private.without_needless_processes():
        _init("local", num_cpus=cpus, object_store_memory=_LOCAL_STORE_NBYTES, include_dashboard=False)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables of this process temporarily, for the processes that it starts."""
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
    """One worker per CPU of the cluster, including the nodes that its autoscaler may still add."""
    workers = max(int(ray.cluster_resources().get("CPU", 0)), private.autoscaled_cpus())
    if workers:
        return workers
    _log.warning("the cluster has no CPUs yet; asking for %d workers (--workers N)", UNKNOWN_CLUSTER_WORKERS)
    return UNKNOWN_CLUSTER_WORKERS


def most_cpus(workers: int, nodes: Iterable[Mapping[str, float]], memory_nbytes: int | None) -> int:
    """The most CPUs that each of `workers` can have if all run at once; 0 if there is no room for them. nodes: the
    resources of each node."""
    every = [*nodes]
    largest = max((int(node.get("CPU", 0)) for node in every), default=0)
    return max(
        (cpus for cpus in range(1, largest + 1) if _held(every, cpus, memory_nbytes) >= workers), default=0
    )


def _held(nodes: Iterable[Mapping[str, float]], cpus: int, memory_nbytes: int | None) -> int:
    """The number of workers with `cpus` CPUs each that these nodes hold."""
    found = 0
    for node in nodes:
        by_cpus = int(node.get("CPU", 0)) // cpus
        by_memory = int(node.get("memory", 0)) // memory_nbytes if memory_nbytes else by_cpus
        found += min(by_cpus, by_memory)
    return found


def has_room(memory_nbytes: int | None) -> bool:
    """Whether some node could hold a worker if it did nothing else."""
    return any(_fits(node["Resources"], memory_nbytes) for node in ray.nodes() if node["Alive"])


def no_room_message(memory_nbytes: int | None) -> str:
    """Says what a worker needs and what the nodes have."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not alive:
        return "no node is left for a worker"
    cpus = max((int(node.get("CPU", 0)) for node in alive), default=0)
    memory = max((node.get("memory", 0) for node in alive if node.get("CPU", 0) >= 1), default=0)
    needs = "1 CPU" + (f" and {in_mib(memory_nbytes)}" if memory_nbytes else "")
    has = f"the largest has {counted(cpus, 'CPU')}" + (f" and {in_mib(memory)}" if cpus else "")
    return f"no node can hold a worker: it needs {needs}, but of the cluster's {counted(len(alive), 'node')} {has}"


def _fits(resources: Mapping[str, float], memory_nbytes: int | None) -> bool:
    return resources.get("CPU", 0) >= 1 and resources.get("memory", 0) >= (memory_nbytes or 0)


def in_mib(nbytes: float) -> str:
    return f"{nbytes / (1 << 20):.0f} MiB"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
