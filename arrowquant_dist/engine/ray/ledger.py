"""Records which shards are open, waiting, done or given up, and what that cost."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from typing import Any

from arrowquant_dist.engine.ray.metrics import DriverMetrics
from arrowquant_dist.engine.ray.pace import Patience
from arrowquant_dist.engine.run import EngineFacts, OnEvent, compiles, finished, largest_first
from arrowquant_dist.errors import PartialRun, counted
from arrowquant_dist.worker.job import Job

_LONGEST_BACKOFF = 30.0


class Ledger:
    """The state of a run's shards. open: {index: shard} of those neither done nor given up. failures: {index: error}
    of those given up."""

    def __init__(self, shards: Sequence[Job], on_event: OnEvent, patience: Patience) -> None:
        self.open = {shard.index: shard for shard in shards}
        self.failures: dict[int, Exception] = {}
        self.begun: Counter[int] = Counter()
        self.metrics = DriverMetrics()
        self.wasted_seconds = 0.0
        self._waiting = largest_first(shards)
        self._not_before: dict[int, float] = {}
        self._failed: Counter[int] = Counter()
        self._again: set[int] = set()
        self._tried: defaultdict[int, set[object]] = defaultdict(set)
        self._reported: Counter[int] = Counter()
        self._nodes: set[str] = set()
        self._retries = self._stolen = 0
        self._notices: dict[int, Any] = {}
        self._on_event, self._patience = on_event, patience

    def add(self, shards: Sequence[Job]) -> None:
        """Adds open shards. Their indices must be new."""
        self.open |= {shard.index: shard for shard in shards}
        self._waiting = largest_first([*self._waiting, *shards])

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def take(self, worker: object, others: Collection[object], now: float) -> Job | None:
        """The largest waiting shard that this worker may take. A shard that failed goes, after a pause, to a worker
        that has not tried it yet, if there is one among `others`."""
        for place, shard in enumerate(self._waiting):
            if self._not_before.get(shard.index, 0.0) > now:
                continue
            tried = self._tried.get(shard.index, set())
            if worker in tried and any(other not in tried for other in others):
                continue
            return self._waiting.pop(place)
        return None

    def began(self, shard: Job, *, is_second: bool) -> int:
        """Counts an attempt; returns its number, from 1. is_second: whether another attempt is still at work."""
        self.begun[shard.index] += 1
        if is_second:
            self._stolen += 1
            self.metrics.stolen()
        elif shard.index in self._again:
            self._again.discard(shard.index)
            self._retries += 1
            self.metrics.retried()
        return self.begun[shard.index]

    def put_back(self, shard: Job, *, is_again: bool) -> None:
        """Lets the shard wait again. is_again: whether it had been begun."""
        if shard.index in self.open:
            self._again |= {shard.index} if is_again else set()
            self._waiting = largest_first([*self._waiting, shard])

    def retry(self, shard: Job, worker: object, error: Exception | str, now: float) -> bool:
        """Records that an attempt failed in a way that may pass: by an error, or because its worker was lost. False:
        it was the last."""
        self._failed[shard.index] += 1
        self._tried[shard.index].add(worker)
        failed = self._failed[shard.index]
        if failed >= self._patience.attempts:
            self.give_up(shard, error if isinstance(error, Exception) else _lost(error, failed))
            return False
        if isinstance(error, Exception):
            pause = self._patience.backoff * 2 ** (failed - 1)
            self._not_before[shard.index] = now + min(pause, _LONGEST_BACKOFF)
        return True

    def give_up(self, shard: Job, error: Exception) -> None:
        if self.open.pop(shard.index, None) is not None:
            self.failures[shard.index] = error

    def advance(self, shard: Job, blocks: int, alive: int) -> None:
        """Records that `blocks` of its row blocks are finished, by whichever attempt; each block is reported once."""
        told = self._reported[shard.index]
        if blocks > told:
            self._reported[shard.index] = blocks
            self._on_event(finished(shard.blocks[told:blocks], alive))

    def finish(self, shard: Job, node: str | None, alive: int, notice: Any) -> None:
        """Records a committed shard. node: the worker's, if this run did the work. notice: what the worker told."""
        if node is not None:
            self._nodes.add(node)
        if self.open.pop(shard.index, None) is not None:
            if notice is not None:
                self._notices[shard.index] = notice
            self.advance(shard, len(shard.blocks), alive)
            self.metrics.committed()

    def show(self, alive: int) -> None:
        """Reports how many workers there are."""
        self.metrics.show(alive, len(self.open))
        self._on_event(finished((), alive))

    def compiles(self, purpose: str, alive: int) -> None:
        """Reports that a worker compiles kernels for `purpose`."""
        self._on_event(compiles(purpose, alive))

    def facts(self, worker_seconds: float) -> EngineFacts:
        return EngineFacts(
            nodes=tuple(sorted(self._nodes)),
            shard_retries=self._retries,
            stolen=self._stolen,
            wasted_seconds=self.wasted_seconds,
            worker_seconds=worker_seconds,
            notices=dict(self._notices),
        )


def _lost(why: str, attempts: int) -> PartialRun:
    """The same message for every shard; engine/run.py adds which shard it is."""
    message = (
        f"the worker was lost in each of {counted(attempts, 'attempt')} (last: {why}); look at the nodes' memory and "
        "Ray's logs"
    )
    return PartialRun(message)
