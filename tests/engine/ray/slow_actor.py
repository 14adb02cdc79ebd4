"""A ShardActor that takes its time, and fails where a file says so: what is done to it is then done in time."""

from __future__ import annotations

import time
from pathlib import Path

from arrowquant_dist.engine.ray.actor import Hello, ShardActor
from arrowquant_dist.errors import StorageError
from arrowquant_dist.plan import RowBlock, Shard
from arrowquant_dist.target.receipt import Receipt
from arrowquant_dist.worker import OnBlock, ShardWorker, ShouldStop, WorkerContext

BLOCK_SECONDS = 0.05


def faults(target: str) -> Path:
    """The folder beside the target with a file `<shard>-<n>` for each failure to come."""
    return Path(f"{target}.faults")


def hold(target: str) -> Path:
    """While this file is there, no row block is finished."""
    return Path(f"{target}.hold")


class SlowWorker(ShardWorker):
    def __init__(self, context: WorkerContext, node: str) -> None:
        super().__init__(context, node)
        self._faults = faults(context.target)
        self._hold = hold(context.target)

    def run(self, shard: Shard, on_block: OnBlock, should_stop: ShouldStop) -> Receipt:
        def slowly(block: RowBlock) -> None:
            time.sleep(BLOCK_SECONDS)
            while self._hold.exists():
                time.sleep(BLOCK_SECONDS)
            on_block(block)

        for fault in self._faults.glob(f"{shard.index}-*"):
            fault.unlink()
            raise StorageError("the server is away; try again", uri="s3://bucket/part")
        return super().run(shard, slowly, should_stop)


class SlowActor(ShardActor):
    def __init__(self, context: WorkerContext) -> None:
        super().__init__(context)
        self._worker = SlowWorker(context, self._hello.node)


class OtherVersion(ShardActor):
    """Of a node whose package is not the driver's."""

    def hello(self) -> Hello:
        return Hello(self._hello.node, self._hello.node_id, "0123456789abcdef")
