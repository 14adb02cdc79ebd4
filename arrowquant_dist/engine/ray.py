"""Workers as Ray actors, on the cluster at an address or on a local Ray that is started and stopped here.

Actors return nothing but "done": receipts are the commits at the target, so Ray's object store holds no metadata that
grows with the model. Restarted actors and lost nodes cost the shards that they had in hand, which are dispatched again.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from arrowquant_dist.engine.run import EngineFacts, OnEvent, finished, largest_first, raise_failures
from arrowquant_dist.errors import ArrowQuantError, Interrupted, PartialRun, StorageError
from arrowquant_dist.machine import usable_cpus
from arrowquant_dist.plan import Shard
from arrowquant_dist.worker import ShardWorker, WorkerContext

ATTEMPTS = 4  # of a shard, before actors that die under it fail the run
IN_FLIGHT = 2  # calls an actor: the next shard waits at the actor, the rest stay free for others
_LOCAL_STORE_NBYTES = 80 << 20
_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


class _Actor:
    """A ShardWorker on another process."""

    def __init__(self, context: WorkerContext) -> None:
        self._worker = ShardWorker(context)

    def run(self, shard: Shard) -> None:
        self._worker.run(shard, on_block=lambda _: None, should_stop=lambda: False)


class RayEngine:
    """address: of a cluster; None starts a Ray on this machine for the run. workers: actors, by default as many as the
    cluster has CPUs. memory_nbytes: what a cluster's scheduler sets aside for each."""

    name = "ray"

    def __init__(self, address: str | None, workers: int | None, memory_nbytes: int) -> None:
        self._address = address
        self._wanted = workers
        self._memory_nbytes = memory_nbytes
        self.workers = workers or 0

    def run(self, context: WorkerContext, shards: Sequence[Shard], on_event: OnEvent) -> EngineFacts:
        """See Engine.run."""
        owns_ray = not ray.is_initialized()
        if owns_ray:
            self._connect()
        try:
            return self._run(context, shards, on_event)
        except KeyboardInterrupt as error:
            raise Interrupted("interrupted; the same command resumes the run") from error
        finally:
            if owns_ray:
                ray.shutdown()

    def _connect(self) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._address is None:
            options |= {
                "num_cpus": self._wanted or usable_cpus(),
                "object_store_memory": _LOCAL_STORE_NBYTES,
                "include_dashboard": False,
            }
        try:
            ray.init(self._address or "local", **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise StorageError(
                f"no Ray cluster can be reached ({error}); check --address", uri=self._address
            ) from error

    def _run(self, context: WorkerContext, shards: Sequence[Shard], on_event: OnEvent) -> EngineFacts:
        cpus = int(ray.cluster_resources().get("CPU", 1))
        self.workers = min(self._wanted or max(cpus, 1), max(len(shards), 1))
        actor_class = ray.remote(_Actor).options(
            num_cpus=1,
            memory=self._memory_nbytes if self._address is not None else None,
            max_restarts=-1,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": _THREADS},
        )
        dispatch = _Dispatch([actor_class.remote(context) for _ in range(self.workers)], shards, on_event)
        raise_failures(dispatch.run(), len(shards))
        return EngineFacts()


class _Dispatch:
    """The loop that hands out shards, largest first, at most IN_FLIGHT an actor, and again when an actor died."""

    def __init__(self, actors: Sequence[Any], shards: Sequence[Shard], on_event: OnEvent) -> None:
        self._actors = actors
        self._waiting = deque(largest_first(shards))
        self._attempts = dict.fromkeys((shard.index for shard in shards), 0)
        self._running: dict[Any, tuple[Shard, int]] = {}
        self._load = [0] * len(actors)
        self._on_event = on_event
        self._failures: dict[int, Exception] = {}

    def run(self) -> dict[int, Exception]:
        """{shard: error} of the shards that failed."""
        while self._waiting or self._running:
            self._fill()
            done, _ = ray.wait(list(self._running), num_returns=1)
            for call in done:
                self._settle(call, *self._running.pop(call))
        return self._failures

    def _fill(self) -> None:
        while self._waiting and min(self._load) < IN_FLIGHT:
            actor = self._load.index(min(self._load))
            shard = self._waiting.popleft()
            self._running[self._actors[actor].run.remote(shard)] = (shard, actor)
            self._load[actor] += 1

    def _settle(self, call: Any, shard: Shard, actor: int) -> None:
        self._load[actor] -= 1
        try:
            ray.get(call)
        except RayTaskError as error:
            self._failures[shard.index] = _cause(error)
        except RayError as error:
            self._retry(shard, error)
        else:
            self._on_event(finished(shard.blocks, len(self._actors)))

    def _retry(self, shard: Shard, error: RayError) -> None:
        self._attempts[shard.index] += 1
        if self._attempts[shard.index] < ATTEMPTS:
            self._waiting.appendleft(shard)
            return
        kind = "its workers died" if isinstance(error, RayActorError) else type(error).__name__
        message = (
            f"shard {shard.index} was given up after {ATTEMPTS} attempts ({kind}); the same command resumes"
        )
        self._failures[shard.index] = PartialRun(message)


def _cause(error: RayTaskError) -> Exception:
    """The exception that the worker raised; Ray derives the one it raises here from it."""
    cause = error.cause
    failure: Exception = cause if isinstance(cause, ArrowQuantError) else error
    return failure
