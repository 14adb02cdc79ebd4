"""A run whose workers write to a different sink than those of `quantize`; plan, target and engine are the same.

`python -m tests.worker.export SOURCE TARGET block|part N` is such a run in a process of its own, which dies without a
chance to clean up when its N-th row block is added, or when its N-th part is closed but not committed.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.config import QuantizationConfig, RunConfig
from arrowquant_dist.engine.inline import InlineEngine
from arrowquant_dist.format.record import PartInfo
from arrowquant_dist.plan import Plan, RowBlock, Shard, make_plan, plan_table
from arrowquant_dist.storage.base import Store
from arrowquant_dist.target.target import Target
from arrowquant_dist.tensor import QuantizedTensor
from arrowquant_dist.worker.shard import WorkerContext
from arrowquant_dist.worker.sink import Part, Sink, SinkSpec
from tests.target.drivers import Driver, start
from tests.worker.safetensors_sink import SafetensorsParts

CONFIG = QuantizationConfig("int4", per_channel=False, group_size=64)
RUN = RunConfig(block_bytes=64 << 10, shard_bytes=300 << 10)  # a shard per 256 KiB layer, of four row blocks


def plan_of(source: str) -> Plan:
    return make_plan(open_checkpoint(source), CONFIG, RUN)


def export(source: str, target: str, sink: SinkSpec, workers: int = 2) -> Driver:
    """Does the missing shards, and publishes nothing."""
    plan = plan_of(source)
    driver = start(Target.open(target), plan_table(plan))
    done = driver.receipts()
    missing = [shard for shard in plan.shards if shard.index not in done]
    InlineEngine(workers).run(context_of(source, target, sink), missing, lambda _: None)
    return driver


def context_of(source: str, target: str, sink: SinkSpec) -> WorkerContext:
    return WorkerContext(target, plan_of(source).fingerprint, sink, open_checkpoint(source).files)


@dataclass
class Death:
    """Ends the process when `what` happens for the n-th time."""

    what: str
    left: int

    def may_strike(self, what: str) -> None:
        self.left -= what == self.what
        if self.left == 0:
            os._exit(9)


@dataclass
class DeadlyParts:
    death: Death

    def open(self, store: Store) -> Sink:
        return DeadlySink(SafetensorsParts().open(store), self.death)


@dataclass
class DeadlySink:
    sink: Sink
    death: Death

    def open_part(self, shard: Shard, attempt: str) -> Part:
        return DeadlyPart(self.sink.open_part(shard, attempt), self.death)


@dataclass
class DeadlyPart:
    part: Part
    death: Death

    def add(self, block: RowBlock, quantized: QuantizedTensor) -> None:
        self.part.add(block, quantized)
        self.death.may_strike("block")

    def close(self) -> PartInfo:
        written = self.part.close()
        self.death.may_strike("part")
        return written

    def abort(self) -> None:
        self.part.abort()


if __name__ == "__main__":
    source, target, what, times = sys.argv[1:]
    export(source, target, DeadlyParts(Death(what, int(times))), workers=1)
