"""Runs of the Ray engine on a plan of many small shards, and what they left behind."""

from __future__ import annotations

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
from arrowquant_dist.worker import ShardWorker, WorkerContext
from arrowquant_dist.worker.sinks.v2 import V2Parts
from tests.engine.ray.slow_actor import SlowActor, hold
from tests.integration.program import commits
from tests.sources import save_checkpoint
from tests.target.drivers import start

SHARDS = 16
MEMORY_NBYTES = 256 << 20
QUICK = Patience(poll=0.2, backoff=0.1, stall=1.0, late=1.0, loser=3.0, farewell=2.0)
SECONDS = 60


@dataclass
class Run:
    """One plan at one target. facts: of the engine, once it is through."""

    plan: Plan
    context: WorkerContext
    target: Path
    events: list[EngineEvent] = field(default_factory=list)
    facts: EngineFacts = field(default_factory=EngineFacts)

    def engine(
        self,
        address: str | None,
        workers: int | None = 2,
        *,
        patience: Patience = QUICK,
        actor_class: type[ShardActor] = SlowActor,
        memory_nbytes: int = MEMORY_NBYTES,
    ) -> None:
        """Runs all shards to their end."""
        engine = RayEngine(address, workers, memory_nbytes, patience, actor_class)
        self.facts = engine.run(self.context, self.plan.shards, self.events.append)

    @contextmanager
    def at_work(
        self, address: str, after: int = 0, *, workers: int | None = 2, patience: Patience = QUICK
    ) -> Iterator[None]:
        """Runs beside the block, which is entered after so many commits; it ends with the run.

        A run that does not end loses its Ray, and fails by that.
        """
        errors: list[BaseException] = []

        def work() -> None:
            try:
                self.engine(address, workers, patience=patience)
            except BaseException as error:  # noqa: BLE001 (raised in the test's own thread)
                errors.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            wait_until(lambda: self.commits >= after or not thread.is_alive())
            yield
            thread.join(SECONDS)
            assert not thread.is_alive(), "the run does not end"
        finally:
            if thread.is_alive():
                ray.shutdown()
        if errors:
            raise errors[0]

    @contextmanager
    def held(self) -> Iterator[None]:
        """No shard is finished meanwhile."""
        file = hold(str(self.target))
        file.touch()
        try:
            yield
        finally:
            file.unlink()

    def wait_alive(self, workers: int) -> None:
        """Until the run says that there are so many."""
        wait_until(lambda: bool(self.events) and self.events[-1].workers_alive == workers, 30)

    @property
    def commits(self) -> int:
        return commits(self.target)

    def checksums(self) -> dict[tuple[str, int], str]:
        """{layer and first row: checksum of codes, scales and zero points}, of what is committed."""
        receipts = start(Target.open(str(self.target)), plan_table(self.plan)).receipts()
        return _checksums(receipts.values())

    def parts(self) -> int:
        """Those of killed workers included, which `publish` removes."""
        return len([*(self.target / "weights").rglob("part-*.parquet")])


def start_run(
    folder: Path,
    weights: dict[str, torch.Tensor] | None = None,
    shards: int = SHARDS,
    shard_bytes: int = 300 << 10,
) -> Run:
    """A target with a plan of a shard a layer, four row blocks each."""
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
    """What an undisturbed worker makes of the same plan."""
    target = run.target.with_name("quiet")
    start(Target.open(str(target)), plan_table(run.plan))
    context = WorkerContext(str(target), run.plan.fingerprint, run.context.sink, run.context.files)
    worker = ShardWorker(context)
    receipts = [worker.run(shard, lambda _: None, lambda: False) for shard in run.plan.shards]
    return _checksums(receipts)


def _checksums(receipts: Iterable[Receipt]) -> dict[tuple[str, int], str]:
    headers = (row.header for receipt in receipts for row in receipt.rows)
    return {(header.layer_name, header.row_start): header.checksum for header in headers}


def wait_until(happened: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def total(events: Sequence[EngineEvent]) -> tuple[int, int, int]:
    """Row blocks, bytes and layers."""
    return (
        sum(e.rows for e in events),
        sum(e.nbytes for e in events),
        sum(e.layers for e in events),
    )
