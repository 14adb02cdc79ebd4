"""A Ray cluster of several nodes on this machine, whose actors and nodes get killed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import psutil

from arrowquant_dist.driver import Progress
from tests.processes import actor_processes

_STORE_NBYTES = 80 << 20


class Nodes:
    """A head without CPUs, to which drivers connect, and worker nodes of one CPU each. `stop` ends them."""

    def __init__(self, workers: int = 2) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "object_store_memory": _STORE_NBYTES, "include_dashboard": False}
        self._cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        self._workers: list[Any] = []
        self.fill(workers)

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def fill(self, workers: int = 2) -> None:
        """Adds nodes until `workers` of them are alive."""
        for node in [node for node in self._workers if not node.remaining_processes_alive()]:
            self._workers.remove(node)
            self._cluster.remove_node(node, allow_graceful=False)
        while len(self._workers) < workers:
            node = self._cluster.add_node(num_cpus=1, object_store_memory=_STORE_NBYTES, wait=False)
            self._workers.append(node)
        self._cluster.wait_for_nodes()

    def remove_hard(self) -> None:
        """Kills the oldest worker node with all its processes at once."""
        self._cluster.remove_node(self._workers.pop(0), allow_graceful=False)

    def preempt(self, seconds: float) -> None:
        """Tells the oldest worker node that it has `seconds` left, then removes it, as a cloud does with a spot
        node."""
        import ray

        node_id = self._workers[0].node_id
        deadline = int((time.time() + seconds) * 1000)
        reason = _preemption()
        accepted, message = ray._raylet.GcsClient(address=self.address).drain_node(
            node_id, reason, "spot", deadline
        )
        assert accepted, message
        time.sleep(seconds)
        self.remove_hard()

    def stop(self) -> None:
        self._cluster.shutdown()


def _preemption() -> int:
    from ray.core.generated import autoscaler_pb2

    return int(autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"))


class NobodyThere(Exception):
    """There is nothing to strike yet."""


class Blow(threading.Thread):
    """Calls `strike` each time that the target reaches one of the numbers of commits in `after`, while the run goes on.

    after: numbers of commits, rising. delay: seconds to wait once a number is reached. struck_after: number of commits
    at the time of each strike. The run's driver calls `hold_back` with its progress, and so does not get to the last
    fifth before all strikes are done.
    """

    def __init__(
        self, strike: Callable[[], None], done: Callable[[], int], *after: int, delay: float = 0.0
    ) -> None:
        super().__init__(name="blow", daemon=True)
        self._strike, self._done, self._after, self._delay = strike, done, after, delay
        self._over, self._through = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self.struck_after: list[int] = []

    def run(self) -> None:
        try:
            for after in self._after:
                if not self._is_time(after) or not self._has_struck():
                    return
                self.struck_after.append(self._done())
        except BaseException as error:  # noqa: BLE001 (raised in the test's own thread)
            self._error = error
        finally:
            self._through.set()

    def hold_back(self, progress: Progress) -> None:
        if progress.done_nbytes > 0.8 * progress.total_nbytes:
            self._through.wait()

    def _is_time(self, after: int) -> bool:
        """Waits until it is time to strike. False if the run is over before."""
        while self._done() < after:
            if self._over.wait(0.002):
                return False
        return not self._over.wait(self._delay)

    def _has_struck(self) -> bool:
        """Strikes as soon as there is something to strike. False if the run is over before."""
        while True:
            try:
                self._strike()
            except NobodyThere:
                if self._over.wait(0.002):
                    return False
            else:
                return True

    def assert_landed(self, commits: int) -> None:
        """Asserts that every strike was done while the run still had commits to make. commits: those of the whole
        run."""
        assert len(self.struck_after) == len(self._after), f"over after {self.struck_after} of {self._after}"
        assert self.struck_after[-1] < commits, "the blow came after the last commit"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self.join()
        if error is None and self._error is not None:
            raise self._error


def kill_one(number: int) -> None:
    """Sends SIGKILL to one of the actors. Raises NobodyThere if there is none."""
    alive = actor_processes()
    if not alive:
        raise NobodyThere
    try:
        alive[number % len(alive)].kill()
    except psutil.NoSuchProcess as error:
        raise NobodyThere from error
