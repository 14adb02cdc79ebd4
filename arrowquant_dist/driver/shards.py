"""The shards of a run: the engine does those that are missing, the commits say which are done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from arrowquant_dist.engine import Engine, EngineFacts, OnEvent
from arrowquant_dist.errors import ArrowQuantError, IncompleteDataset, Interrupted, listed
from arrowquant_dist.plan import Plan, Shard
from arrowquant_dist.target.receipt import Receipt
from arrowquant_dist.target.target import Target
from arrowquant_dist.worker import WorkerContext


def run_shards(
    engine: Engine, dataset: Target, context: WorkerContext, missing: Sequence[Shard], on_event: OnEvent
) -> EngineFacts:
    """Returns when every shard is committed, by whomever."""
    try:
        return engine.run(context, missing, on_event)
    except Interrupted:
        raise
    except ArrowQuantError:
        if not _is_published(dataset):
            raise
        return EngineFacts()  # another driver has done all of it meanwhile


def in_order(receipts: Mapping[int, Receipt], plan: Plan, uri: str) -> list[Receipt]:
    """Every shard's receipt. IncompleteDataset, naming a few, where some have none."""
    missing = [shard.index for shard in plan.shards if shard.index not in receipts]
    if missing:
        message = (
            f"{len(missing)} of {len(plan.shards)} shards are not committed ({listed(missing)}); "
            "run the same command again"
        )
        raise IncompleteDataset(message, uri=uri)
    return [receipts[shard.index] for shard in plan.shards]


def _is_published(dataset: Target) -> bool:
    """No, too, where the target cannot be asked: what is known to have failed is then what to tell."""
    try:
        return dataset.manifest() is not None
    except ArrowQuantError:
        return False
