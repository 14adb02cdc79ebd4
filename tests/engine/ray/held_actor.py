"""ShardActors with workers that wait and fail where files say so, and one of another version."""

from __future__ import annotations

from arrowquant_dist.engine.ray.actor import Hello, ShardActor
from arrowquant_dist.export.worker import ExportContext
from arrowquant_dist.worker.shard import WorkerContext
from tests.held_worker import HeldExportWorker, HeldWorker


class HeldActor(ShardActor):
    def __init__(self, context: WorkerContext) -> None:
        super().__init__(context)
        self._worker = HeldWorker(context, self._hello.node)


class HeldActorOfExports(ShardActor):
    def __init__(self, context: ExportContext) -> None:
        super().__init__(context)
        self._worker = HeldExportWorker(context, self._hello.node, self._compile)


class OtherVersion(ShardActor):
    """Of a node whose package is not the driver's."""

    def hello(self) -> Hello:
        return Hello(self._hello.node, self._hello.node_id, "0123456789abcdef")
