"""One shard: read → quantize → measure → write → commit → receipt. Plain Python: engines only call `run`."""

from arrowquant_dist.worker.job import OnBlock, ShouldStop
from arrowquant_dist.worker.shard import ShardWorker, WorkerContext

__all__ = ["OnBlock", "ShardWorker", "ShouldStop", "WorkerContext"]
