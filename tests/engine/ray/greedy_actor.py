"""A ShardActor that takes more and more memory, if a file says so, until it is killed for it."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

from arrowquant_dist.engine.ray.actor import ShardActor
from arrowquant_dist.plan import Shard
from arrowquant_dist.target.receipt import Receipt
from arrowquant_dist.worker.job import OnBlock, ShouldStop
from arrowquant_dist.worker.shard import ShardWorker, WorkerContext

GREED_NBYTES = 4 << 30
_STEP_NBYTES = 64 << 20


def greed(target: str) -> Path:
    """The file next to the target that makes the next shard greedy; that shard removes it."""
    return Path(f"{target}.greed")


class GreedyWorker(ShardWorker):
    def __init__(self, context: WorkerContext, node: str) -> None:
        super().__init__(context, node)
        self._greed = greed(context.target)

    def run(self, shard: Shard, on_block: OnBlock, should_stop: ShouldStop) -> Receipt:
        try:
            self._greed.unlink()
        except FileNotFoundError:
            return super().run(shard, on_block, should_stop)
        taken = [np.ones(_STEP_NBYTES, np.uint8) for _ in range(GREED_NBYTES // _STEP_NBYTES)]
        threading.Event().wait()
        raise AssertionError(f"nobody minds {len(taken)} pieces")


class GreedyActor(ShardActor):
    def _open_worker(self, context: WorkerContext) -> GreedyWorker:  # type: ignore[override]
        return GreedyWorker(context, self._hello.node)
