"""The run as events: actors start; shards are handed out as the engine does it, finish, or are lost with their node.

Second attempts at slow shards and repeated requests are left out. Workers share network and request limits evenly, and
a shard takes as long as the slowest of its CPU, its network and its requests, since reading, quantizing and writing
overlap.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from simulation.rates import Cluster, Rates
from simulation.work import Work

from arrowquant_dist.target.commit import READERS

_PUBLISHING = 10  # requests, one after the other: listing, index, report, manifest


@dataclass(frozen=True, slots=True)
class Result:
    """Result of a simulated run.

    seconds, start_seconds, end_seconds: seconds of the whole run, of its start (planning, nodes, actors) and of its end
    (reducing). workers: number of workers. shares: what the workers' time between start and end was spent on, as
    fractions that add up to 1. driver_busy: fraction of that time in which the driver was busy. lost_shards: number of
    shards that were lost with their node.
    """

    seconds: float
    start_seconds: float
    end_seconds: float
    workers: int
    shares: dict[str, float]
    driver_busy: float
    lost_shards: int

    @property
    def running_seconds(self) -> float:
        return self.seconds - self.start_seconds - self.end_seconds

    @property
    def efficiency(self) -> float:
        """Share of the workers' time in which their CPUs did work that counted: reading, quantizing, writing."""
        return self.shares["working"]

    @property
    def bound(self) -> str:
        """Name of what took the largest share of the time in which workers did not work."""
        losses = {name: share for name, share in self.shares.items() if name != "working"}
        return max(losses, key=lambda name: losses[name])


@dataclass(slots=True)
class _Worker:
    """A worker. queue: shards that it was given; it has been working on the first one since `began`."""

    node: int
    ready: bool = False
    queue: list[int] = field(default_factory=list)
    began: float = 0.0
    idle_since: float = 0.0
    life: int = 0  # grows with each loss; events of an earlier life are ignored


class Simulation:
    """One run. `run` may be called once."""

    def __init__(self, work: Work, rates: Rates, cluster: Cluster, workers: int, seed: int = 1) -> None:
        self._rates, self._cluster, self._work = rates, cluster, work
        self._random = np.random.default_rng(seed)
        self._count = min(workers, work.shards)
        self._cpu, self._seconds, self._cause = _shard_seconds(work, rates, cluster, self._count)
        self._waiting = deque(range(work.shards))
        self._open = work.shards
        self._workers = [_Worker(number // cluster.workers_per_node) for number in range(self._count)]
        self._events: list[tuple[float, int, str, int, int]] = []
        self._driver_free = self._driver_busy = 0.0
        self._spent = dict.fromkeys(("working", "storage", "requests", "driver", "lost nodes", "tail"), 0.0)
        self._lost = 0

    def run(self) -> Result:
        rates, cluster = self._rates, self._cluster
        before = rates.planning_seconds * self._work.layers
        begin = before + cluster.node_seconds + rates.actor_seconds
        for number in range(self._count):
            self._at(begin, "ready", number)
        nodes = -(-self._count // cluster.workers_per_node)
        for node in range(nodes if cluster.preemptions else 0):
            self._at(begin + self._until_preemption(), "preempted", node)
        now = begin
        while self._open:
            now, _, kind, number, life = heapq.heappop(self._events)
            if kind == "preempted":
                self._preempt(number, now)
            elif self._workers[number].life == life:
                getattr(self, f"_{kind}")(number, now)
        for worker in self._workers:
            if worker.ready:
                self._spent["tail"] += now - worker.idle_since if not worker.queue else now - worker.began
        after = rates.reducing_seconds * float(self._work.rows.sum())
        if cluster.network:
            after += cluster.latency * (self._work.shards / READERS + _PUBLISHING)
        return self._result(begin, now, after)

    def _result(self, begin: float, end: float, after: float) -> Result:
        running = end - begin
        shares = {name: spent / (running * self._count) for name, spent in self._spent.items()}
        shares["lost nodes"] += max(
            0.0, 1 - sum(shares.values())
        )  # while a node was gone and its successor not yet there
        busy = self._driver_busy / running
        return Result(end + after, begin, after, self._count, shares, busy, self._lost)

    def _ready(self, number: int, now: float) -> None:
        worker = self._workers[number]
        worker.ready, worker.idle_since = True, now
        self._give(number, now)

    def _done(self, number: int, now: float) -> None:
        worker = self._workers[number]
        shard = worker.queue.pop(0)
        self._open -= 1
        elapsed = now - worker.began
        cpu = min(elapsed, self._cpu[shard])
        self._spent["working"] += cpu
        self._spent[self._cause[shard]] += elapsed - cpu
        worker.idle_since = now
        if worker.queue:
            self._begin(number, now)
        self._give(number, now)

    def _give(self, number: int, now: float) -> None:
        """Hands out shards as Dispatch._deal does: one to each worker, a second one while more shards wait than there
        are workers, and at the end those that other workers have queued."""
        worker = self._workers[number]
        told = self._told(now)
        if not worker.queue and not self._waiting:
            self._steal(number, told)
        elif not worker.queue:
            worker.queue.append(self._waiting.popleft())
            self._begin(number, told)
        if len(worker.queue) == 1 and len(self._waiting) > self._count:
            worker.queue.append(self._waiting.popleft())

    def _steal(self, number: int, now: float) -> None:
        others = [worker for worker in self._workers if len(worker.queue) > 1]
        if others:
            busy = min(others, key=lambda worker: worker.queue[1])  # the largest shard comes first
            self._workers[number].queue.append(busy.queue.pop(1))
            self._begin(number, now)

    def _begin(self, number: int, now: float) -> None:
        worker = self._workers[number]
        self._spent["driver"] += now - worker.idle_since
        worker.began = now
        factor = (
            float(np.exp(self._random.normal(0.0, self._cluster.jitter))) if self._cluster.jitter else 1.0
        )
        self._at(now + factor * float(self._seconds[worker.queue[0]]), "done", number)

    def _told(self, now: float) -> float:
        """The time at which the driver has handled an event of `now`: it handles one at a time."""
        cost = self._rates.dispatch_seconds + self._rates.dispatch_seconds_per_worker * self._count
        self._driver_free = max(self._driver_free, now) + cost
        self._driver_busy += cost
        return self._driver_free

    def _preempt(self, node: int, now: float) -> None:
        """Removes the node's workers, and puts their shards back in the queue; another node takes its place later."""
        back = now + self._cluster.node_seconds + self._rates.actor_seconds
        for number, worker in enumerate(self._workers):
            if worker.node != node or not worker.ready:
                continue
            if worker.queue:
                self._spent["lost nodes"] += now - worker.began
                self._lost += 1
            self._waiting.extendleft(reversed(worker.queue))
            worker.queue, worker.ready, worker.life = [], False, worker.life + 1
            self._at(back, "ready", number)
        self._at(back + self._until_preemption(), "preempted", node)
        for number, worker in enumerate(self._workers):
            if worker.ready and not worker.queue and self._waiting:
                self._give(number, now)

    def _until_preemption(self) -> float:
        return float(self._random.exponential(3600 / self._cluster.preemptions))

    def _at(self, when: float, kind: str, number: int) -> None:
        life = 0 if kind == "preempted" else self._workers[number].life
        heapq.heappush(self._events, (when, len(self._events), kind, number, life))


def _shard_seconds(
    work: Work, rates: Rates, cluster: Cluster, workers: int
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """For each shard: CPU seconds, seconds in total, and what it waits for if not for the CPU."""
    cpu = work.params / rates.params_per_second + rates.shard_seconds
    if not cluster.network:  # local files: the workers' rate includes everything, and no S3 client is at work
        return cpu, cpu, ["storage"] * work.shards
    cpu = cpu + work.read * rates.read_cpu + work.written * rates.write_cpu
    share = cluster.network / min(workers, cluster.workers_per_node)
    rate = min(share, cluster.requests * cluster.stream)
    # Two batches are read ahead, so requests follow each other: the limit is the network, or the number in flight.
    in_flight = (work.gets * cluster.latency + work.read / cluster.stream) / cluster.requests
    reading = np.maximum(work.read / rate, in_flight)
    writing = work.written / rate + cluster.latency
    asking = np.maximum(work.gets * workers / cluster.gets, work.puts * workers / cluster.puts)
    # Time before the first block has arrived, and after the last one: the end of the upload and the commit.
    edges = work.first / rate + cluster.latency + 3 * cluster.latency
    network = np.maximum(reading, writing)
    seconds = np.maximum(np.maximum(cpu, network), asking) + edges
    return (
        cpu,
        seconds,
        ["requests" if a > max(c, n) else "storage" for a, c, n in zip(asking, cpu, network, strict=True)],
    )
