"""RayTraining: workers that train together through Ray Train, and a desk where they report their progress.

There are three kinds of actors. The desk runs beside the driver, which looks there a few times a second. The
conductor runs beside it too and waits for Ray Train: it owns everything that Ray Train starts, so ending the
conductor ends all of it, at any moment. (A thread of the driver that waited instead would be cut off from Ray's
library when the driver stops, and crash with it.) The workers are Ray Train's, connected by torch.distributed over
gloo.

If a worker is lost, Ray Train restarts all workers, up to a given number of times. They resume from what they have
saved themselves: Ray Train's checkpoints and results are not used, so no storage has to be shared beyond what the run
shares anyway. An error that another attempt would not fix is left at the desk, where the driver finds it and ends
everything.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from arrowquant_dist import machine
from arrowquant_dist.engine.ray import private
from arrowquant_dist.engine.ray.cluster import WORKER_ENVIRONMENT, connect, in_mib, most_cpus
from arrowquant_dist.engine.ray.conductor import Conductor, TrainingSetup
from arrowquant_dist.engine.ray.failures import loss, raised
from arrowquant_dist.engine.ray.interrupt import Interrupts
from arrowquant_dist.engine.training import JointWork
from arrowquant_dist.errors import (
    RESUMES,
    ArrowQuantError,
    Interrupted,
    InvalidConfig,
    PartialRun,
    StorageError,
    counted,
    have,
)

_LOOK_SECONDS = 0.25
_FAREWELL_SECONDS = 30.0  # for Ray Train to release what it reserved, in a Ray that keeps running


@dataclass(frozen=True, slots=True)
class News:
    """notes: left since the driver last asked. error: one that another attempt would not fix. ended: number of
    workers that are done."""

    notes: list[Any]
    error: ArrowQuantError | None
    ended: int


class Desk:
    """Where workers leave notes for the driver; each worker's notes stay in order."""

    def __init__(self) -> None:
        self._notes: list[Any] = []
        self._error: ArrowQuantError | None = None
        self._ended: set[int] = set()

    def tell(self, note: Any) -> None:
        self._notes.append(note)

    def fail(self, error: ArrowQuantError) -> None:
        """Records an error; the first one counts."""
        self._error = self._error or error

    def end(self, number: int) -> None:
        """Records that this worker has done its work."""
        self._ended.add(number)

    def take(self) -> News:
        notes, self._notes = self._notes, []
        return News(notes, self._error, len(self._ended))


class RayTraining:
    """Runs workers that train together. address: of a cluster; None starts a Ray on this machine. If the caller is
    connected to a Ray already, that one is used and left running. workers: number of workers. attempts: how often the
    workers are started if some are lost. deadline: seconds for which a worker may keep the others waiting."""

    def __init__(self, address: str | None, workers: int, attempts: int, deadline: float | None) -> None:
        self._address, self._workers = address, workers
        self._attempts, self._deadline = attempts, deadline

    def run(
        self, work: JointWork, needed_nbytes: int, cluster_nbytes: int, on_note: Callable[[Any], None]
    ) -> None:
        """See engine.train_together. Ctrl-C or SIGTERM raises Interrupted; what was saved is kept."""
        owns_ray = not ray.is_initialized()
        is_alone = owns_ray and self._address is None
        if is_alone:
            self._refuse_too_large(needed_nbytes)
        with Interrupts() as interrupts:
            try:
                if owns_ray:
                    connect(self._address, self._workers * self._threads_here)
                interrupts.take()
                self._run(
                    work,
                    self._resources(None if is_alone else cluster_nbytes),
                    on_note,
                    interrupts,
                    stays=not owns_ray,
                )
            except KeyboardInterrupt as error:
                raise Interrupted(RESUMES) from error
            finally:
                if owns_ray:
                    ray.shutdown()

    @property
    def _threads_here(self) -> int:
        """CPUs per worker if all workers are on this machine."""
        return max(1, machine.usable_cpus() // self._workers)

    def _refuse_too_large(self, needed_nbytes: int) -> None:
        there = machine.memory_nbytes()
        if self._workers * needed_nbytes > there:
            message = (
                f"each of {counted(self._workers, 'worker')} needs {in_mib(needed_nbytes)} of memory to train, but "
                f"this machine has only {in_mib(there)}; use fewer workers, or a cluster (--address)"
            )
            raise InvalidConfig(message)

    def _resources(self, memory_nbytes: int | None) -> dict[str, float]:
        """The resources of each worker. Raises InvalidConfig if the cluster has no room for all of them and no
        autoscaler can add any."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus = most_cpus(self._workers, nodes, memory_nbytes)
        if not cpus and not private.autoscaled_cpus():
            message = (
                f"there is no room for {counted(self._workers, 'worker')} that train together: each needs "
                f"{_room(1, memory_nbytes)}, but the cluster's {counted(len(nodes), 'node')} "
                f"{have(len(nodes))} {_room_of(nodes, memory_nbytes)} in all; use fewer workers"
            )
            raise InvalidConfig(message)
        return {"CPU": max(cpus, 1), **({"memory": memory_nbytes} if memory_nbytes else {})}

    def _run(
        self,
        work: JointWork,
        resources: Mapping[str, float],
        on_note: Callable[[Any], None],
        interrupts: Interrupts,
        *,
        stays: bool,
    ) -> None:
        """stays: whether Ray keeps running afterwards."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        beside = {"num_cpus": 0, "max_restarts": 0, "scheduling_strategy": here}
        desk = ray.remote(Desk).options(**beside).remote()
        conductor = ray.remote(Conductor).options(**beside).remote()
        with tempfile.TemporaryDirectory(prefix="arrowquant-", ignore_cleanup_errors=True) as folder:
            setup = TrainingSetup(
                desk,
                work.code(),
                cloudpickle.dumps(work),
                self._workers,
                resources,
                self._attempts,
                self._deadline,
                folder,
                WORKER_ENVIRONMENT,
            )
            try:
                conducted = conductor.conduct.remote(setup)
                self._follow(desk, conducted, on_note, interrupts)
                if stays:
                    ray.wait([conducted], timeout=_FAREWELL_SECONDS)
            except RayTaskError as error:
                raise raised(error) from error
            except RayError as error:
                message = (
                    f"Ray was lost during the training ({loss(error)}); run the same command again to resume"
                )
                raise StorageError(message) from error
            finally:
                ray.kill(conductor)
                ray.kill(desk)

    def _follow(
        self, desk: Any, conducted: Any, on_note: Callable[[Any], None], interrupts: Interrupts
    ) -> None:
        """Returns when every worker has reported that it is done; Ray Train itself takes some more time to end."""
        is_over = False
        while _heard(desk, on_note) < self._workers:
            if is_over:
                message = "the training ended before all of its workers were done; run the same command again to resume"
                raise PartialRun(message)
            interrupts.check()
            over, _ = ray.wait([conducted], timeout=_LOOK_SECONDS)
            if over:
                ray.get(conducted)  # raises what ended it
                is_over = True  # nothing was raised, so all workers have reported at the desk


def _heard(desk: Any, on_note: Callable[[Any], None]) -> int:
    """The number of workers that are done."""
    news: News = ray.get(desk.take.remote())
    for note in news.notes:
        on_note(note)
    if news.error is not None:
        raise news.error
    return news.ended


def _room_of(nodes: Iterable[Mapping[str, float]], memory_nbytes: int | None) -> str:
    every = [*nodes]
    memory = sum(node.get("memory", 0) for node in every)
    return _room(sum(int(node.get("CPU", 0)) for node in every), memory if memory_nbytes else None)


def _room(cpus: int, memory_nbytes: float | None) -> str:
    """The resources for people; without memory if `memory_nbytes` is None."""
    return counted(cpus, "CPU") + (f" and {in_mib(memory_nbytes)}" if memory_nbytes is not None else "")
