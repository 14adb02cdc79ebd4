"""ShardActors whose workers wait and fail where files tell them to, and one of another version of the package."""

from __future__ import annotations

from typing import Any

from arrowquant_dist.engine.ray.actor import ShardActor
from arrowquant_dist.export.worker import ExportContext
from arrowquant_dist.worker.job import Context
from arrowquant_dist.worker.shard import WorkerContext
from tests.held_worker import HeldExportWorker, HeldWorker


class HeldActor(ShardActor):
    def _open_worker(self, context: WorkerContext) -> HeldWorker:  # type: ignore[override]
        return HeldWorker(context, self._hello.node)


class HeldActorOfExports(ShardActor):
    def _open_worker(self, context: ExportContext) -> HeldExportWorker:  # type: ignore[override]
        return HeldExportWorker(context, self._hello.node, self._compile)


class OtherVersion(ShardActor):
    """An actor on a node whose package differs from the driver's, and which cannot read the context."""

    def __init__(self, code: str, context: bytes) -> None:
        super().__init__(code, b"of another version: " + context)

    def _codes(self) -> tuple[str, ...]:
        return ("0123456789abcdef",)

    def _open_worker(self, context: Context[Any]) -> Any:
        raise AttributeError(f"{context} has no attribute 'direct_writes'")
