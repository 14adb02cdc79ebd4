"""Runs of the Ray engine on a plan of many small shards, and what they leave behind."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import ray
import torch

from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.config import QuantizationConfig, RunConfig
from arrowquant_dist.engine import EngineEvent, EngineFacts
from arrowquant_dist.engine.ray import Patience, RayEngine
from arrowquant_dist.engine.ray.actor import ShardActor
from arrowquant_dist.plan import Plan, make_plan, plan_table
from arrowquant_dist.target.receipt import Receipt
from arrowquant_dist.target.target import Target
from arrowquant_dist.worker.shard import ShardWorker, WorkerContext
from arrowquant_dist.worker.sinks.v2 import V2Parts
from tests.engine.ray.held_actor import HeldActor
from tests.held_worker import begun, hold_at
from tests.integration.program import commits
from tests.sources import save_checkpoint
from tests.target.drivers import start
from tests.waiting import until

SHARDS = 16
MEMORY_NBYTES = 256 << 20
# Polls often. All other limits are far off, so that no pause of a busy machine comes near them.
QUICK = Patience(poll=0.2, backoff=0.1, stall=600.0, late=600.0, loser=600.0, farewell=60.0)


class SetClock:
    """The driver's clock: that of the machine, ahead by as many seconds as a test says."""

    ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


@dataclass
class Run:
    """One plan at one target.

    events: what the engine reported. facts: the engine's facts, once it has ended.
    """

    plan: Plan
    context: WorkerContext
    target: Path
    events: list[EngineEvent] = field(default_factory=list)
    facts: EngineFacts = field(default_factory=EngineFacts)
    _clock: SetClock = field(default_factory=SetClock)
    _heard: int = 0
    _thread: threading.Thread = field(default_factory=threading.Thread)

    def engine(
        self,
        address: str | None,
        workers: int | None = 2,
        *,
        patience: Patience = QUICK,
        actor_class: type[ShardActor] = HeldActor,
        memory_nbytes: int = MEMORY_NBYTES,
    ) -> None:
        """Runs the engine until all shards are done."""
        engine = RayEngine(address, workers, memory_nbytes, patience, actor_class, self._clock)
        self.facts = engine.run(self.context, self.plan.shards, self.events.append)

    @contextmanager
    def at_work(
        self, address: str | None, after: int = 0, *, workers: int | None = 2, patience: Patience = QUICK
    ) -> Iterator[None]:
        """Runs the engine in a thread next to the block, which begins after `after` commits; the run ends with the
        block.

        Nothing is committed before all `workers` are there, nor within the block until `go_on`. If the run does not
        end, its Ray is shut down, and it fails.
        """
        errors: list[BaseException] = []

        def work() -> None:
            try:
                self.engine(address, workers, patience=patience)
            except BaseException as error:  # noqa: BLE001 (raised in the test's own thread)
                errors.append(error)

        self._thread = threading.Thread(target=work, daemon=True)
        self.go_on(to=0)
        self._thread.start()
        try:
            if after:
                self.wait_alive(workers or 1)
                self.go_on(after)
                self._wait(lambda: self.commits >= after)
            yield
            self.go_on()
            self._thread.join()
        finally:
            if self.is_at_work:
                ray.shutdown()
        if errors:
            raise errors[0]

    @property
    def is_at_work(self) -> bool:
        return self._thread.is_alive()

    def go_on(self, to: int = sys.maxsize) -> None:
        """Lets the run go on until there are `to` commits."""
        hold_at(str(self.target), to)

    def wait_alive(self, workers: int) -> None:
        """Waits until the run reports `workers` workers, in events after the one at which the last call stopped."""

        def is_said() -> bool:
            while self._heard < len(self.events) and self.events[self._heard].workers_alive != workers:
                self._heard += 1
            return self._heard < len(self.events)

        self._wait(is_said)

    def go_on_by_one(self) -> None:
        """Lets the run go on until the driver hears of one more commit than there is now; after that, nothing is
        finished."""
        commits = self.commits
        self.go_on(commits + 1)
        self._wait(lambda: total(self.events)[2] > commits)

    def pass_seconds(self, seconds: float) -> None:
        """Puts the driver's clock forward, and waits until the driver has looked at it."""
        self._clock.ahead += seconds
        looks = len(self.events) + 3  # the first one may have begun before
        until(lambda: len(self.events) >= looks or not self.is_at_work)

    def _wait(self, happened: Callable[[], bool]) -> None:
        until(lambda: happened() or not self.is_at_work)
        assert happened(), "the run was over first"

    @property
    def begun(self) -> list[int]:
        """The shards that workers began, in order, each as often as it was begun."""
        return sorted(begun(str(self.target)))

    @property
    def commits(self) -> int:
        return commits(self.target)

    def checksums(self) -> dict[tuple[str, int], str]:
        """{(layer, first row): checksum of codes, scales and zero points} of everything committed."""
        receipts = start(Target.open(str(self.target)), plan_table(self.plan)).receipts()
        return _checksums(receipts.values())

    def parts(self) -> int:
        """Number of part files, including those of killed workers, which `publish` removes."""
        return len([*(self.target / "weights").rglob("part-*.parquet")])


def start_run(
    folder: Path,
    weights: dict[str, torch.Tensor] | None = None,
    shards: int = SHARDS,
    shard_bytes: int = 300 << 10,
) -> Run:
    """A target with a plan of one shard per layer, with four row blocks each."""
    if weights is None:
        generator = torch.Generator().manual_seed(1)
        weights = {f"layers.{i}.weight": torch.randn(256, 256, generator=generator) for i in range(shards)}
    checkpoint = open_checkpoint(save_checkpoint(folder / "source", weights))
    plan = make_plan(
        checkpoint, QuantizationConfig(), RunConfig(block_bytes=64 << 10, shard_bytes=shard_bytes)
    )
    target = folder / "target"
    start(Target.open(str(target)), plan_table(plan))
    return Run(
        plan,
        WorkerContext(str(target), plan.fingerprint, V2Parts(plan.compression), checkpoint.files),
        target,
    )


def quiet_checksums(run: Run) -> dict[tuple[str, int], str]:
    """The checksums that an undisturbed worker gets for the same plan."""
    target = run.target.with_name("quiet")
    start(Target.open(str(target)), plan_table(run.plan))
    context = WorkerContext(str(target), run.plan.fingerprint, run.context.sink, run.context.files)
    worker = ShardWorker(context)
    receipts = [worker.run(shard, lambda _: None, lambda: False) for shard in run.plan.shards]
    return _checksums(receipts)


def _checksums(receipts: Iterable[Receipt]) -> dict[tuple[str, int], str]:
    headers = (row.header for receipt in receipts for row in receipt.rows)
    return {(header.layer_name, header.row_start): header.checksum for header in headers}


def total(events: Sequence[EngineEvent]) -> tuple[int, int, int]:
    """The sums of row blocks, bytes and layers over all events."""
    return (
        sum(e.rows for e in events),
        sum(e.nbytes for e in events),
        sum(e.layers for e in events),
    )
