"""A worker that waits and fails where files beside its target say so, for what is done to a run in its midst."""

from __future__ import annotations

import time
from pathlib import Path

from arrowquant_dist.errors import StorageError
from arrowquant_dist.plan import RowBlock, Shard
from arrowquant_dist.target.receipt import Receipt
from arrowquant_dist.worker import OnBlock, ShardWorker, ShouldStop, WorkerContext
from arrowquant_dist.worker.job import OnCompile

_LOOK_SECONDS = 0.01


def faults(target: str) -> Path:
    """The folder beside the target with a file `<shard>-<n>` for each failure to come."""
    return Path(f"{target}.faults")


def begun(target: str) -> list[int]:
    """The shard of each attempt so far, as they were begun."""
    try:
        return [int(line) for line in _begun(target).read_text().split()]
    except FileNotFoundError:
        return []


def hold_at(target: str, commits: int) -> None:
    """No row block is finished any more once there are so many commits."""
    new = _hold(target).with_suffix(".new")
    new.write_text(str(commits))
    new.replace(_hold(target))


def _begun(target: str) -> Path:
    return Path(f"{target}.begun")


def _hold(target: str) -> Path:
    return Path(f"{target}.hold")


class HeldWorker(ShardWorker):
    def __init__(
        self, context: WorkerContext, node: str | None = None, on_compile: OnCompile = lambda _: None
    ) -> None:
        super().__init__(context, node, on_compile)
        self._faults = faults(context.target)
        self._begun, self._hold = _begun(context.target), _hold(context.target)
        self._commits = Path(context.target) / "run" / "commits"

    def run(self, shard: Shard, on_block: OnBlock, should_stop: ShouldStop) -> Receipt:
        def held(block: RowBlock) -> None:
            while self._is_held() and not should_stop():
                time.sleep(_LOOK_SECONDS)
            on_block(block)

        with self._begun.open("a") as file:
            file.write(f"{shard.index}\n")
        for fault in self._faults.glob(f"{shard.index}-*"):
            fault.unlink()
            raise StorageError("the server is away; try again", uri="s3://bucket/part")
        return super().run(shard, held, should_stop)

    def _is_held(self) -> bool:
        try:
            after = int(self._hold.read_text())
        except FileNotFoundError:
            return False
        return len([*self._commits.glob("*.json")]) >= after
