"""The shards of a run: the engine does the missing ones, and the commits tell which are done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from arrowquant_dist.engine import Engine, EngineFacts, OnEvent
from arrowquant_dist.errors import ArrowQuantError, IncompleteDataset, Interrupted, are, counted, listed
from arrowquant_dist.plan import Plan, Shard
from arrowquant_dist.target.receipt import Receipt
from arrowquant_dist.target.target import Target, overwritten
from arrowquant_dist.worker.shard import WorkerContext


def run_shards(
    engine: Engine, dataset: Target, context: WorkerContext, missing: Sequence[Shard], on_event: OnEvent
) -> EngineFacts:
    """Returns when every shard is committed, by this driver or another."""
    try:
        return engine.run(context, missing, on_event)
    except Interrupted:
        raise
    except ArrowQuantError:
        if _is_published(dataset, context):
            return EngineFacts()  # another driver has done all of it meanwhile
        _refuse_overwritten(dataset, context)
        raise


def in_order(receipts: Mapping[int, Receipt], plan: Plan, uri: str) -> list[Receipt]:
    """The receipt of every shard, in order. Raises IncompleteDataset, naming a few, if some shards have none."""
    missing = [shard.index for shard in plan.shards if shard.index not in receipts]
    if missing:
        message = (
            f"{len(missing)} of {counted(len(plan.shards), 'shard')} {are(len(missing))} not committed "
            f"({listed(missing)}); run the same command again"
        )
        raise IncompleteDataset(message, uri=uri)
    return [receipts[shard.index] for shard in plan.shards]


def _refuse_overwritten(dataset: Target, context: WorkerContext) -> None:
    """Raises TargetConflict if the run was overwritten, which makes each of its shards fail."""
    try:
        planned = dataset.planned()
    except ArrowQuantError:
        return
    if planned is None or planned.identity.name != context.run:
        raise overwritten(dataset.store.uri)


def _is_published(dataset: Target, context: WorkerContext) -> bool:
    """Whether the dataset is published. False, too, if the target cannot be read: the failure that is known already
    is then the one to raise."""
    try:
        manifest = dataset.manifest()
    except ArrowQuantError:
        return False
    return manifest is not None and manifest.run in (None, context.run)
