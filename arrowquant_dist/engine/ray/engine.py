"""RayEngine: connects, requests actors, dispatches shards, and leaves nothing behind."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ray
from ray import cloudpickle

from arrowquant_dist.engine.ray.actor import WATCH, ShardActor
from arrowquant_dist.engine.ray.cluster import WORKER_ENVIRONMENT, connect, default_workers
from arrowquant_dist.engine.ray.crew import Crew
from arrowquant_dist.engine.ray.dispatch import Dispatch
from arrowquant_dist.engine.ray.interrupt import Interrupts
from arrowquant_dist.engine.ray.ledger import Ledger
from arrowquant_dist.engine.ray.pace import Patience
from arrowquant_dist.engine.run import EngineFacts, OnEvent, raise_failures
from arrowquant_dist.errors import RESUMES, Interrupted
from arrowquant_dist.worker.job import Context, J

_TERMINATED_SECONDS = 2.0  # `ray job stop` kills the driver 3 s after its SIGTERM


class RayEngine:
    """Runs workers as Ray actors. address: of a cluster; None starts a Ray on this machine for the run. If the caller
    is connected to a Ray already, that one is used and left running. workers: number of actors, by default as many as
    the cluster has CPUs or may get from its autoscaler. memory_nbytes: memory that a cluster's scheduler reserves for
    each. actor_class: for fault injection. clock: the clock for `patience`, in seconds."""

    name = "ray"

    def __init__(
        self,
        address: str | None,
        workers: int | None,
        memory_nbytes: int,
        patience: Patience | None = None,
        actor_class: type[ShardActor] = ShardActor,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = address
        self._wanted = workers
        self._memory_nbytes = memory_nbytes
        self._patience = patience or Patience()
        self._actor_class, self._clock = actor_class, clock
        self.workers = workers or 0

    def workers_of_a_process(self, _shards: int) -> int:
        return 1

    def run(self, context: Context[J], shards: Sequence[J], on_event: OnEvent) -> EngineFacts:
        """See Engine.run. Ctrl-C or SIGTERM stops each worker after its current row block, and raises Interrupted."""
        return self.run_steps(context, [shards], on_event, len(shards))

    def run_steps(
        self, context: Context[J], steps: Iterable[Sequence[J]], on_event: OnEvent, widest: int
    ) -> EngineFacts:
        """See Engine.run_steps. A Ctrl-C between two steps takes effect when the next one begins."""
        owns_ray = not ray.is_initialized()
        with Interrupts() as interrupts:
            try:
                if owns_ray:
                    connect(self._address, self._wanted)
                interrupts.take()
                is_alone = owns_ray and self._address is None
                needs = {} if is_alone else self._needs()
                return self._run(context, steps, on_event, needs, interrupts, widest)
            except KeyboardInterrupt as error:
                raise Interrupted(RESUMES) from error
            finally:
                if owns_ray:
                    ray.shutdown()

    def _needs(self) -> dict[str, Any]:
        """What a worker needs besides its CPU on a cluster that is shared or that others have set up."""
        return {"memory": self._memory_nbytes, "runtime_env": {"env_vars": WORKER_ENVIRONMENT}}

    def _run(
        self,
        context: Context[J],
        steps: Iterable[Sequence[J]],
        on_event: OnEvent,
        needs: Mapping[str, Any],
        interrupts: Interrupts,
        widest: int,
    ) -> EngineFacts:
        self.workers = min(self._wanted or default_workers(), max(widest, 1))
        actor_class = ray.remote(concurrency_groups={WATCH: 1})(self._actor_class).options(
            num_cpus=1,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
            **needs,
        )
        code, pickled = context.code(), cloudpickle.dumps(context)
        crew = Crew(lambda: actor_class.remote(code, pickled), code, self._clock())
        ledger = Ledger([], on_event, self._patience)
        # A Ray of our own never gets another node.
        patience = self._patience if needs else self._patience.on_one_node
        dispatch = Dispatch(crew, ledger, patience, self.workers, needs.get("memory"), self._clock)
        try:
            done: list[J] = []
            for shards in steps:
                done = [*shards]
                ledger.add(done)
                dispatch.run(interrupts.check)
                if ledger.failures:
                    break
            dispatch.stop(self._patience.farewell)
        except KeyboardInterrupt:
            is_terminated = interrupts.number == signal.SIGTERM
            dispatch.stop(_TERMINATED_SECONDS if is_terminated else self._patience.farewell)
            raise
        finally:
            crew.dismiss(self._clock())
        raise_failures(ledger.failures, done)
        return ledger.facts(crew.worker_seconds)
