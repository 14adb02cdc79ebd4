"""The actors of a run: requested, started, lost, and requested again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

from arrowquant_dist.engine.ray.actor import Hello
from arrowquant_dist.engine.ray.failures import is_of_node, start_failure
from arrowquant_dist.errors import MissingDependency
from arrowquant_dist.worker.job import Job

# Consecutive failures, with no actor alive, after which the run is given up: of actors, and of actors whose nodes went
# while they started, which says little about the next node, and takes several actors at once.
_START_FAILURES, _LOST_STARTS = 3, 30
_LONGEST_PAUSE = 30.0


@dataclass(slots=True, eq=False)
class Attempt:
    """A shard in the hands of an actor. number: of the attempt at this shard, from 1. call: the ref of its Result.

    started: None while it is queued behind another attempt at the actor. blocks: number of finished row blocks.
    moved: when `blocks` last changed. told: when it was told to stop. Times are by the dispatch's clock.
    """

    ticket: int
    shard: Job
    number: int
    call: Any
    started: float | None
    moved: float
    blocks: int = 0
    told: float | None = None

    def seconds(self, now: float) -> float:
        return now - self.started if self.started is not None else 0.0


@dataclass(slots=True, eq=False)
class Seat:
    """An actor's place in the crew. since: when the actor first answered, None before. question: the ref of an
    unanswered `progress` call. asked: when that call was made."""

    handle: Any
    greeting: Any
    node: str = ""
    node_id: str = ""
    since: float | None = None
    attempts: list[Attempt] = field(default_factory=list)
    question: Any = None
    asked: float = 0.0
    is_leaving: bool = False


class Crew:
    """The actors of a run. create: makes an actor, which may have to wait for room in the cluster. code: the digest
    that each actor must have. now: the start of the run. A lost actor is not restarted but replaced: then Ray tells
    why it was lost (preempted or not), and a call on the new actor waits for room in the cluster instead of
    failing."""

    def __init__(self, create: Callable[[], Any], code: str, now: float) -> None:
        self._create = create
        self._failures = self._lost_starts = 0
        self._not_before = 0.0
        self._code = code
        self.seats: list[Seat] = []
        self.worker_seconds = 0.0
        self.without_any_since = now

    @property
    def alive(self) -> list[Seat]:
        return [seat for seat in self.seats if seat.since is not None]

    def fill(self, wanted: int, now: float) -> list[Seat]:
        """Requests actors until there are `wanted`; returns the new ones."""
        new: list[Seat] = []
        while len(self.seats) < wanted and now >= self._not_before:
            handle = self._create()
            new.append(Seat(handle, handle.hello.remote()))
            self.seats.append(new[-1])
        return new

    def welcome(self, seat: Seat, hello: Hello, now: float) -> None:
        """Records that the actor has answered. Raises MissingDependency if its package is not the driver's."""
        if self._code not in hello.codes:
            message = (
                f"node {hello.node} has another version of arrowquant-dist than the driver; install the same "
                "one everywhere, or submit the job with its --working-dir"
            )
            raise MissingDependency(message)
        seat.node, seat.node_id, seat.since = hello.node, hello.node_id, now
        self._failures = self._lost_starts = 0

    def remove(self, seat: Seat, now: float) -> None:
        """Ends the actor, which may be gone already."""
        ray.kill(seat.handle, no_restart=True)
        self.seats.remove(seat)
        if seat.since is not None:
            self.worker_seconds += now - seat.since
            if not self.alive:
                self.without_any_since = now

    def start_failed(self, seat: Seat, error: RayError, now: float) -> None:
        """Records that an actor could not be created. The next one is requested after a pause; raises if too many
        have failed."""
        self.remove(seat, now)
        if is_of_node(error):
            self._lost_starts += 1
        else:
            self._failures += 1
        too_many = self._failures >= _START_FAILURES or self._lost_starts >= _LOST_STARTS
        if too_many and not self.alive:
            raise start_failure(error) from error
        self._not_before = now + min(2.0 ** max(self._failures - 1, 0), _LONGEST_PAUSE)

    def dismiss(self, now: float) -> None:
        """Ends all actors: none outlives the run, unless its node is unreachable."""
        for seat in list(self.seats):
            self.remove(seat, now)
