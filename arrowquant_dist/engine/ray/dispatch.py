"""The loop that hands shards to actors, largest first, until each is committed or given up.

An actor has at most two shards at a time, the second one only while more shards wait than there are actors. Ray
cannot recall a queued call from an actor that does not answer, so a second shard is taken back by telling the actor
not to begin it (ShardActor.stop) and giving it to another actor at once: if the first one has begun it all the same,
the first commit wins.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from arrowquant_dist.engine.log import figures_of, log_attempt
from arrowquant_dist.engine.ray import actor, cluster, failures, private
from arrowquant_dist.engine.ray.crew import Attempt, Crew, Seat
from arrowquant_dist.engine.ray.ledger import Ledger
from arrowquant_dist.engine.ray.pace import Pace, Patience, is_slow
from arrowquant_dist.errors import PartialRun
from arrowquant_dist.worker.job import Job

_WAIT_SECONDS = 0.25
_DOUBTFUL_POLLS = 5  # an actor that has not answered for so many polls gets nothing new
_WARN_SECONDS = 30.0
_log = logging.getLogger("arrowquant_dist.engine")


class Dispatch:
    """Hands shards to actors. workers: maximum number of actors. memory_nbytes: memory that the scheduler reserves
    for each, used in messages; None on a Ray of the run's own. clock: monotonic seconds, the same clock as the
    crew's."""

    def __init__(
        self,
        crew: Crew,
        ledger: Ledger,
        patience: Patience,
        workers: int,
        memory_nbytes: int | None,
        clock: Callable[[], float],
    ) -> None:
        self._crew, self._ledger, self._patience = crew, ledger, patience
        self._workers, self._memory_nbytes, self._clock = workers, memory_nbytes, clock
        self._pace = Pace()
        self._calls: dict[Any, Callable[[], None]] = {}
        self._tickets = itertools.count(1)
        self._warned = False
        self._next_poll = 0.0

    def run(self, check: Callable[[], None]) -> None:
        """Returns when no shard is open; losing attempts may still be at work. check: called often, may raise."""
        while self._ledger.open:
            check()
            now = self._clock()
            for seat in self._crew.fill(min(self._workers, len(self._ledger.open)), now):
                self._calls[seat.greeting] = partial(self._greeted, seat)
            self._deal(now)
            self._answer()
            if self._clock() >= self._next_poll:
                self._look_around(self._clock())
                self._next_poll = self._clock() + self._patience.poll

    @property
    def _advice(self) -> str:
        if self._memory_nbytes is None:
            return "look in Ray's logs for the reason"
        return "add nodes, or make a worker need less memory (block_bytes, or memory_budget of an export)"

    def stop(self, seconds: float) -> None:
        """Tells all attempts to stop, and waits up to `seconds` for them to delete their parts."""
        deadline = self._clock() + seconds
        for seat in self._crew.alive:
            self._tell(seat, seat.attempts)
        while self._clock() < deadline and any(seat.attempts for seat in self._crew.alive):
            self._answer()

    def _answer(self) -> None:
        """Waits a little for calls to finish, and handles those that have."""
        if not self._calls:
            time.sleep(_WAIT_SECONDS)
            return
        calls = list(self._calls)
        done, rest = ray.wait(calls, timeout=_WAIT_SECONDS, fetch_local=False)
        if done and rest:
            done += ray.wait(rest, num_returns=len(rest), timeout=0, fetch_local=False)[0]
        for call in done:
            handle = self._calls.pop(call, None)  # None: its actor was lost meanwhile, with all of its calls
            if handle is not None:
                handle()

    # --- giving

    def _deal(self, now: float) -> None:
        alive = self._crew.alive
        able = [seat for seat in alive if self._is_able(seat, now)]
        for seat in able:
            if not seat.attempts:
                self._give(seat, now)
        if self._ledger.waiting > len(alive):
            for seat in able:
                if len(seat.attempts) == 1:
                    self._give(seat, now)
        elif not self._ledger.waiting:
            for seat in able:
                if not seat.attempts:
                    self._take_over(seat, now)

    def _is_able(self, seat: Seat, now: float) -> bool:
        answers = seat.question is None or now - seat.asked < _DOUBTFUL_POLLS * self._patience.poll
        return answers and not seat.is_leaving

    def _give(self, seat: Seat, now: float) -> None:
        shard = self._ledger.take(seat, self._crew.alive, now)
        if shard is not None:
            self._begin(seat, shard, now, is_second=False)

    def _take_over(self, seat: Seat, now: float) -> None:
        """Gives work to an idle actor when nothing waits: a shard queued at another actor, else one that another is
        slow with."""
        queued = [(s, a) for s, a in self._others(seat) if a.started is None]
        if queued:
            busy, attempt = max(queued, key=lambda pair: pair[1].shard.source_nbytes)
            self._tell(busy, [attempt])
            self._begin(seat, attempt.shard, now, is_second=False)
            return
        slow = [
            attempt
            for _, attempt in self._others(seat)
            if self._attempts_of(attempt.shard) == 1 and self._is_slow(attempt, now)
        ]
        if slow:
            longest = max(slow, key=lambda attempt: attempt.seconds(now))
            self._begin(seat, longest.shard, now, is_second=True)

    def _others(self, idle: Seat) -> list[tuple[Seat, Attempt]]:
        """Attempts at other actors that may still count."""
        return [
            (seat, attempt)
            for seat in self._crew.alive
            if seat is not idle
            for attempt in seat.attempts
            if attempt.told is None and attempt.shard.index in self._ledger.open
        ]

    def _is_slow(self, attempt: Attempt, now: float) -> bool:
        expected = self._pace.expected(attempt.shard.source_nbytes)
        return is_slow(attempt.seconds(now), now - attempt.moved, expected, self._patience)

    def _attempts_of(self, shard: Job) -> int:
        seats = self._crew.seats
        return sum(a.shard is shard and a.told is None for seat in seats for a in seat.attempts)

    def _begin(self, seat: Seat, shard: Job, now: float, *, is_second: bool) -> None:
        ticket, number = next(self._tickets), self._ledger.began(shard, is_second=is_second)
        call = seat.handle.run.remote(ticket, shard, look_first=number > 1)
        attempt = Attempt(ticket, shard, number, call, None if seat.attempts else now, now)
        seat.attempts.append(attempt)
        self._calls[call] = partial(self._ended, seat, attempt)

    def _tell(self, seat: Seat, attempts: Iterable[Attempt]) -> None:
        """Tells these attempts to stop."""
        new = [attempt for attempt in attempts if attempt.told is None]
        for attempt in new:
            attempt.told = self._clock()
        if new:
            stop = seat.handle.stop.options(concurrency_group=actor.WATCH)
            stop.remote([attempt.ticket for attempt in new])

    # --- hearing

    def _greeted(self, seat: Seat) -> None:
        now = self._clock()
        try:
            hello = ray.get(seat.greeting)
        except RayError as error:
            self._crew.start_failed(seat, error, now)
            return
        self._crew.welcome(seat, hello, now)
        self._ledger.show(len(self._crew.alive))

    def _told_progress(self, seat: Seat) -> None:
        question, seat.question = seat.question, None
        try:
            told: actor.ActorProgress = ray.get(question)
        except RayError as error:
            self._lose(seat, failures.loss(error), is_fault=not failures.is_preempted(error))
            return
        if told.compiling:
            self._ledger.compiles(told.compiling, len(self._crew.alive))
        for attempt in seat.attempts:
            if attempt.ticket == told.ticket and told.blocks > attempt.blocks:
                attempt.blocks, attempt.moved = told.blocks, self._clock()
                if attempt.shard.index in self._ledger.open:
                    self._ledger.advance(attempt.shard, told.blocks, len(self._crew.alive))

    def _ended(self, seat: Seat, attempt: Attempt) -> None:
        try:
            result = ray.get(attempt.call)
        except RayTaskError as error:
            self._leave(seat, attempt)
            self._log(seat, attempt, actor.FAILED, error=failures.raised(error))
            self._waste(attempt)
            self._ledger.give_up(attempt.shard, failures.raised(error))
            self._settle_others(attempt)
        except RayError as error:
            self._lose(seat, failures.loss(error), is_fault=not failures.is_preempted(error))
        else:
            self._leave(seat, attempt)
            self._hear(seat, attempt, result)

    def _leave(self, seat: Seat, attempt: Attempt) -> None:
        """Removes the attempt, which is over; the actor's next one begins now."""
        seat.attempts.remove(attempt)
        for behind in seat.attempts[:1]:
            behind.started = behind.moved = self._clock()

    def _hear(self, seat: Seat, attempt: Attempt, result: actor.Result) -> None:
        shard, now = attempt.shard, self._clock()
        self._log(seat, attempt, result.outcome, result)
        if result.outcome == actor.FAILED and result.error is not None:
            self._waste(attempt)
            if not result.may_pass:
                self._ledger.give_up(shard, result.error)
            elif shard.index in self._ledger.open and self._ledger.retry(shard, seat, result.error, now):
                self._put_back(shard, is_again=True)
        elif result.outcome == actor.STOPPED:
            self._waste(attempt)
        else:
            if result.outcome == actor.DONE:
                self._pace.add(shard.source_nbytes, result.wall_seconds)
            elif result.outcome == actor.BEATEN:
                self._waste(attempt)
            node = seat.node if result.outcome == actor.DONE else None
            self._ledger.finish(shard, node, len(self._crew.alive), result.notice)
        self._settle_others(attempt)

    def _settle_others(self, attempt: Attempt) -> None:
        """Stops the other attempts at a shard that is no longer open."""
        if attempt.shard.index not in self._ledger.open:
            for seat in self._crew.alive:
                self._tell(seat, [a for a in seat.attempts if a.shard is attempt.shard])

    def _waste(self, attempt: Attempt) -> None:
        self._ledger.wasted_seconds += attempt.seconds(self._clock())

    # --- losing

    def _lose(self, seat: Seat, why: str, *, is_fault: bool) -> None:
        """Removes an actor that is gone, or ends one. is_fault: whether it counts against the shard at hand."""
        if seat not in self._crew.seats:
            return
        now = self._clock()
        attempts, seat.attempts = seat.attempts, []
        for call in [seat.question, *(attempt.call for attempt in attempts)]:
            self._calls.pop(call, None)
        self._crew.remove(seat, now)
        for attempt in attempts:
            self._log(seat, attempt, why)
            self._waste(attempt)
            shard = attempt.shard
            counts = is_fault and not seat.is_leaving and attempt.started is not None and attempt.told is None
            is_over = shard.index not in self._ledger.open or attempt.told is not None
            if is_over or (counts and not self._ledger.retry(shard, seat, why, now)):
                continue
            self._put_back(shard, is_again=attempt.started is not None)
        self._ledger.show(len(self._crew.alive))

    def _put_back(self, shard: Job, *, is_again: bool) -> None:
        if not self._attempts_of(shard):
            self._ledger.put_back(shard, is_again=is_again)

    # --- looking

    def _look_around(self, now: float) -> None:
        draining = private.draining_nodes()
        for seat in self._crew.alive:
            seat.is_leaving = seat.node_id in draining
            self._look_at(seat, now)
        if not self._crew.alive:
            self._check_room(now)
        self._ledger.show(len(self._crew.alive))

    def _look_at(self, seat: Seat, now: float) -> None:
        if seat.is_leaving and not seat.attempts:
            self._crew.remove(seat, now)  # lets its node go sooner
            self._calls.pop(seat.question, None)
            return
        for attempt in seat.attempts[:1]:
            nbytes = attempt.shard.source_nbytes
            deadline = self._patience.deadline or self._pace.deadline(nbytes)
            if attempt.told is not None and now - attempt.told > self._patience.loser:
                self._lose(seat, "did not stop", is_fault=False)
                return
            if attempt.told is None and now - attempt.moved > deadline:
                self._lose(seat, "hung", is_fault=True)
                return
        if seat.is_leaving:
            for attempt in [a for a in seat.attempts[1:] if a.told is None]:
                self._tell(seat, [attempt])
                self._put_back(attempt.shard, is_again=False)
        if seat.question is None:
            seat.question, seat.asked = (
                seat.handle.progress.options(concurrency_group=actor.WATCH).remote(),
                now,
            )
            self._calls[seat.question] = partial(self._told_progress, seat)

    def _check_room(self, now: float) -> None:
        """Warns, and later gives up, if no node could hold a worker. A node that is merely busy is waited for."""
        without = now - self._crew.without_any_since
        if without < min(_WARN_SECONDS, self._patience.placement):
            self._warned = False
            return
        has_room = cluster.has_room(self._memory_nbytes)
        message = cluster.no_room_message(self._memory_nbytes)
        if not has_room and without >= self._patience.placement:
            raise PartialRun(f"{message}; {self._advice}, then run the same command again")
        if not self._warned:
            self._warned = True
            _log.warning("no worker yet: %s", "the cluster is busy; waiting for it" if has_room else message)

    def _log(
        self, seat: Seat, attempt: Attempt, outcome: str, result: actor.Result | None = None, **more: Any
    ) -> None:
        if attempt.started is None:
            return
        figures: dict[str, Any] = {"worker_seconds": round(attempt.seconds(self._clock()), 3)}
        if result is not None:
            figures |= {
                # a shard that waited behind another began before the driver heard of the other's end
                "worker_seconds": round(max(result.wall_seconds, attempt.seconds(self._clock())), 3),
                **figures_of(result),
                "error": result.error,
            }
        log_attempt(attempt.shard, attempt.number, outcome, seat.node, **figures, **more)
