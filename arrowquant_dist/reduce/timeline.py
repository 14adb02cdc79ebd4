"""When and by whom the last run's shards were made, and how much memory that took; bounded in size for any number of
shards.

Times are seconds since the run began. The start of an attempt is known only by the clock of its machine, and clocks
differ: where commits of a node seem to be outside of the run, all times of the node are moved into it. What still
begins before the run (a shard that another driver at the same target had begun) is cut off there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from operator import attrgetter
from typing import Any, Self

from arrowquant_dist.reduce.facts import RunFacts
from arrowquant_dist.reduce.memory import MemorySeries, memory_series
from arrowquant_dist.target.receipt import Receipt

MOST_LANES = 16
MOST_BARS = 640  # in all lanes together
AT_WORK_STEPS = 120  # number of steps into which the run is divided, to count workers at work
_COLUMNS = ("first_shard", "bar_shards", "start_seconds", "stop_seconds", "bar_seconds")
_TELLING_SECONDS = 1.0  # deviation of a clock that is reported
_LEAST_SECONDS = 0.001  # shortest run: times are rounded to this


@dataclass(frozen=True, slots=True)
class WorkerLane:
    """What one worker did. worker: its process, `host/pid`. thread: its number there. shards, busy_seconds: totals.

    The others are columns with a value for each bar, by rising start. A bar is a shard; where there are more than one
    could tell apart (MOST_BARS), it is all shards that the worker began within one step of time. first_shard,
    bar_shards: first shard and number of shards of a bar. bar_seconds: time at work. phase_seconds: time in each phase
    of that; the rest is neither reading, quantizing nor writing (asking whether the source has changed).
    """

    worker: str
    node: str
    thread: int
    shards: int
    busy_seconds: float
    first_shard: tuple[int, ...]
    bar_shards: tuple[int, ...]
    start_seconds: tuple[float, ...]
    stop_seconds: tuple[float, ...]
    bar_seconds: tuple[float, ...]
    phase_seconds: dict[str, tuple[float, ...]]

    def to_dict(self) -> dict[str, Any]:
        columns = {name: list(getattr(self, name)) for name in _COLUMNS}
        phases = {phase: list(seconds) for phase, seconds in self.phase_seconds.items()}
        return {**asdict(self), **columns, "phase_seconds": phases}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises ValueError where the columns have different lengths."""
        columns = {name: tuple(values[name]) for name in _COLUMNS}
        phases = {name: tuple(seconds) for name, seconds in values["phase_seconds"].items()}
        if len({*map(len, columns.values()), *map(len, phases.values())}) != 1:
            raise ValueError("a lane's columns have different lengths")
        return cls(**{**values, **columns, "phase_seconds": phases})


@dataclass(frozen=True, slots=True)
class Timeline:
    """The last run over time, without shards that it found committed.

    seconds: from its beginning to its report. workers, nodes: number of workers and nodes that made a shard. shards:
    number of shards. cut_shards: number of shards that seem to have begun before the run. moved_nodes: number of nodes
    whose clocks were corrected by a second or more. moved_seconds: the largest correction. worker_memory_nbytes: the
    plan's bound of a worker's memory; None where it is not known. at_work: mean number of workers at work in each of
    AT_WORK_STEPS equal steps of time. lanes: one for each worker; of more than MOST_LANES workers only for the half of
    this number that were at work longest and the half that were at work least; those of a node are together. memory:
    see MemorySeries.
    """

    seconds: float
    workers: int
    nodes: int
    shards: int
    cut_shards: int
    moved_nodes: int
    moved_seconds: float
    worker_memory_nbytes: int | None
    at_work: tuple[float, ...]
    lanes: tuple[WorkerLane, ...]
    memory: tuple[MemorySeries, ...]

    @classmethod
    def of(cls, receipts: Iterable[Receipt], run: RunFacts, worker_memory_nbytes: int | None) -> Self:
        """The timeline from the receipts of all shards. Those of this run always have the time of their beginning."""
        earlier = set(run.resumed_shards)
        own = [receipt for receipt in receipts if receipt.shard not in earlier]
        seconds = max(round(run.wall_seconds, 3), _LEAST_SECONDS)
        moved = _moved_by(_begun(own, datetime.fromisoformat(run.started_at).timestamp()), seconds)
        attempts = [attempt.within(seconds) for attempt in moved.attempts]
        by_worker = _by_worker(attempts)
        shown = _most_telling(list(by_worker.values()))
        is_crowded = sum(map(len, shown)) > MOST_BARS
        step = seconds * len(shown) / MOST_BARS if is_crowded else 0.0
        placed = [(attempt.stop, attempt.receipt) for attempt in attempts]
        return cls(
            seconds=seconds,
            workers=len(by_worker),
            nodes=len({attempt.receipt.node for attempt in attempts}),
            shards=len(attempts),
            cut_shards=sum(attempt.start < -_LEAST_SECONDS for attempt in moved.attempts),
            moved_nodes=moved.nodes,
            moved_seconds=round(moved.seconds, 3),
            worker_memory_nbytes=worker_memory_nbytes,
            at_work=_at_work(attempts, seconds),
            lanes=tuple(_lane(own, step) for own in shown),
            memory=memory_series(placed, seconds),
        )

    def to_dict(self) -> dict[str, Any]:
        lists = {
            "at_work": list(self.at_work),
            "lanes": [lane.to_dict() for lane in self.lanes],
            "memory": [series.to_dict() for series in self.memory],
        }
        return {**asdict(self), **lists}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises ValueError where the run has no duration."""
        if not _LEAST_SECONDS <= values["seconds"] < math.inf:
            raise ValueError("a timeline without a duration")
        lists = {
            "at_work": tuple(values["at_work"]),
            "lanes": tuple(WorkerLane.from_dict(lane) for lane in values["lanes"]),
            "memory": tuple(MemorySeries.from_dict(series) for series in values["memory"]),
        }
        return cls(**{**values, **lists})


@dataclass(frozen=True, slots=True)
class _Attempt:
    """start, stop: seconds since the run began."""

    receipt: Receipt
    start: float
    stop: float

    def within(self, seconds: float) -> _Attempt:
        """The attempt without what is outside of the run."""
        start, stop = (round(min(max(at, 0.0), seconds), 3) for at in (self.start, self.stop))
        return replace(self, start=start, stop=stop)


@dataclass(frozen=True, slots=True)
class _Moved:
    """Attempts after clocks were corrected. nodes: number of nodes that were moved. seconds: the largest move."""

    attempts: list[_Attempt]
    nodes: int
    seconds: float


def _begun(receipts: Iterable[Receipt], began: float) -> list[_Attempt]:
    """Attempts by the clocks of their nodes. began: beginning of the run by the driver's clock."""
    return [
        _Attempt(receipt, receipt.started_at - began, receipt.started_at - began + receipt.wall_seconds)
        for receipt in receipts
        if receipt.started_at is not None
    ]


def _moved_by(attempts: Iterable[_Attempt], seconds: float) -> _Moved:
    by_node: dict[str, list[_Attempt]] = {}
    for attempt in attempts:
        by_node.setdefault(attempt.receipt.node, []).append(attempt)
    corrections = {node: _correction(own, seconds) for node, own in by_node.items()}
    return _Moved(
        [
            replace(attempt, start=attempt.start + corrections[node], stop=attempt.stop + corrections[node])
            for node, own in by_node.items()
            for attempt in own
        ],
        sum(abs(correction) >= _TELLING_SECONDS for correction in corrections.values()),
        max(map(abs, corrections.values()), default=0.0),
    )


def _correction(attempts: Sequence[_Attempt], seconds: float) -> float:
    """What to add to the times of a node, whose commits were all within the run in truth."""
    first, last = min(attempt.stop for attempt in attempts), max(attempt.stop for attempt in attempts)
    if last > seconds:
        return seconds - last
    return min(-min(attempt.start for attempt in attempts), seconds - last) if first < 0 else 0.0


def _by_worker(attempts: Sequence[_Attempt]) -> dict[tuple[str, str, int], list[_Attempt]]:
    """The attempts of each worker by start; nodes, and the workers of a node, in the order of their first attempts."""
    found: dict[tuple[str, str, int], list[_Attempt]] = {}
    for attempt in sorted(attempts, key=attrgetter("start", "stop", "receipt.shard")):
        receipt = attempt.receipt
        found.setdefault((receipt.node, receipt.worker, receipt.thread), []).append(attempt)
    nodes = [*dict.fromkeys(node for node, *_ in found)]
    rank = {node: place for place, node in enumerate(nodes)}
    return dict(sorted(found.items(), key=lambda item: rank[item[0][0]]))


def _most_telling(workers: Sequence[list[_Attempt]]) -> list[list[_Attempt]]:
    """At most MOST_LANES of the workers, in their order: half of them those longest at work, half those least."""
    if len(workers) <= MOST_LANES:
        return list(workers)
    rising = sorted(range(len(workers)), key=lambda place: _busy_seconds(workers[place]))
    half = MOST_LANES // 2
    return [workers[place] for place in sorted({*rising[:half], *rising[-half:]})]


def _busy_seconds(attempts: Iterable[_Attempt]) -> float:
    return math.fsum(attempt.receipt.wall_seconds for attempt in attempts)


def _lane(attempts: Sequence[_Attempt], step: float) -> WorkerLane:
    """The lane of a worker. step: seconds; attempts that begin in one step are one bar. 0: each attempt is a bar."""
    bars: list[list[_Attempt]] = []
    for attempt in attempts:
        if step and bars and attempt.start // step == bars[-1][0].start // step:
            bars[-1].append(attempt)
        else:
            bars.append([attempt])
    first = attempts[0].receipt
    phases = sorted({phase for attempt in attempts for phase in attempt.receipt.seconds})
    return WorkerLane(
        worker=first.worker,
        node=first.node,
        thread=first.thread,
        shards=len(attempts),
        busy_seconds=round(_busy_seconds(attempts), 3),
        first_shard=tuple(bar[0].receipt.shard for bar in bars),
        bar_shards=tuple(map(len, bars)),
        start_seconds=tuple(bar[0].start for bar in bars),
        stop_seconds=tuple(max(attempt.stop for attempt in bar) for bar in bars),
        bar_seconds=tuple(round(_busy_seconds(bar), 3) for bar in bars),
        phase_seconds={phase: tuple(_phase_seconds(bar, phase) for bar in bars) for phase in phases},
    )


def _phase_seconds(bar: Iterable[_Attempt], phase: str) -> float:
    return round(math.fsum(attempt.receipt.seconds.get(phase, 0.0) for attempt in bar), 3)


def _at_work(attempts: Iterable[_Attempt], seconds: float) -> tuple[float, ...]:
    step = seconds / AT_WORK_STEPS
    busy = [0.0] * AT_WORK_STEPS
    for attempt in attempts:
        first, last = (min(int(at / step), AT_WORK_STEPS - 1) for at in (attempt.start, attempt.stop))
        for place in range(first, last + 1):
            begin, end = max(attempt.start, place * step), min(attempt.stop, (place + 1) * step)
            busy[place] += max(0.0, end - begin)
    return tuple(round(one / step, 2) for one in busy)
