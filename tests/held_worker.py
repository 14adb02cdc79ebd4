"""Workers that wait and fail when files next to their target tell them to, so that tests can act in the middle of a
run."""

from __future__ import annotations

import os
import time
from pathlib import Path

from arrowquant_dist.errors import StorageError
from arrowquant_dist.export.files import OutputFile, Step
from arrowquant_dist.export.worker import ExportContext, ExportWorker, FileReceipt
from arrowquant_dist.plan import RowBlock, Shard
from arrowquant_dist.target.receipt import Receipt
from arrowquant_dist.worker.job import OnBlock, OnCompile, ShouldStop
from arrowquant_dist.worker.shard import ShardWorker, WorkerContext

_LOOK_SECONDS = 0.01


def faults(target: str) -> Path:
    """The folder next to the target with a file `<shard>-<n>` for each failure to come."""
    return Path(f"{target}.faults")


def begun(target: str) -> list[int]:
    """The shard of each attempt so far, in the order in which they were begun."""
    try:
        return [int(line) for line in _begun(target).read_text().split()]
    except FileNotFoundError:
        return []


def hold_at(target: str, commits: int) -> None:
    """Makes workers wait, before they finish a row block or a step of an export, once there are `commits` commits or
    files."""
    new = _hold(target).with_suffix(".new")
    new.write_text(str(commits))
    new.replace(_hold(target))


def held(target: str) -> list[int]:
    """The pids of export workers that have waited in the middle of a file."""
    try:
        return [int(line) for line in _held(target).read_text().split()]
    except FileNotFoundError:
        return []


def _begun(target: str) -> Path:
    return Path(f"{target}.begun")


def _hold(target: str) -> Path:
    return Path(f"{target}.hold")


def _held(target: str) -> Path:
    return Path(f"{target}.held")


def _is_held(target: str, commits: int) -> bool:
    try:
        return commits >= int(_hold(target).read_text())
    except FileNotFoundError:
        return False


class HeldWorker(ShardWorker):
    def __init__(
        self, context: WorkerContext, node: str | None = None, on_compile: OnCompile = lambda _: None
    ) -> None:
        super().__init__(context, node, on_compile)
        self._faults = faults(context.target)
        self._place = context.target

    def run(self, shard: Shard, on_block: OnBlock, should_stop: ShouldStop) -> Receipt:
        commits = Path(self._place) / "run" / "commits"

        def wait_at(block: RowBlock) -> None:
            while _is_held(self._place, len([*commits.glob("*.json")])) and not should_stop():
                time.sleep(_LOOK_SECONDS)
            on_block(block)

        _note(_begun(self._place), shard.index)
        for fault in self._faults.glob(f"{shard.index}-*"):
            fault.unlink()
            raise StorageError("the server is away; try again", uri="s3://bucket/part")
        return super().run(shard, wait_at, should_stop)


class HeldExportWorker(ExportWorker):
    """A worker of exports to local safetensors. It waits after the first bytes of a step are written."""

    def __init__(self, context: ExportContext, node: str | None, on_compile: OnCompile) -> None:
        super().__init__(context, node, on_compile)
        self._place = context.out

    def run(self, file: OutputFile, on_block: OnBlock, should_stop: ShouldStop) -> FileReceipt:
        def wait_in(step: Step) -> None:
            if self._is_held():
                _note(_held(self._place), os.getpid())
            while self._is_held() and not should_stop():
                time.sleep(_LOOK_SECONDS)
            on_block(step)

        _note(_begun(self._place), file.index)
        return super().run(file, wait_in, should_stop)

    def _is_held(self) -> bool:
        return _is_held(self._place, len([*Path(self._place).glob("[!.]*.safetensors")]))


def _note(path: Path, number: int) -> None:
    with path.open("a") as file:
        file.write(f"{number}\n")
