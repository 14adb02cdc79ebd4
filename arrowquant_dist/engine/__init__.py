"""Who runs the workers. An engine takes shards and returns when each is committed, or raises what stopped it.

Which shards are done is never an engine's knowledge: the commits at the target say so.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from arrowquant_dist.config import RunConfig
from arrowquant_dist.engine.run import Engine, EngineEvent, EngineFacts, OnEvent
from arrowquant_dist.engine.training import JointWork


def choose_engine(run: RunConfig, worker_memory_nbytes: int) -> Engine:
    """`inline`, `ray`, or for `auto`: ray where an address is given or RAY_ADDRESS is set, else inline."""
    address = _address(run)
    if run.engine == "ray" or (run.engine == "auto" and address is not None):
        from arrowquant_dist.engine.ray import Patience, RayEngine

        patience = Patience(attempts=run.shard_attempts, deadline=run.shard_deadline)
        return RayEngine(address, run.workers, worker_memory_nbytes, patience)
    from arrowquant_dist.engine.inline import InlineEngine

    return InlineEngine(run.workers)


def train_together(
    work: JointWork,
    workers: int,
    needed_nbytes: int,
    cluster_nbytes: int,
    run: RunConfig,
    on_note: Callable[[Any], None],
) -> None:
    """Returns when all workers have ended, at `run.address`, RAY_ADDRESS, or on a Ray of this machine's.

    needed_nbytes: of memory that each of them cannot do without, cluster_nbytes: what a cluster's scheduler sets aside
    for it. on_note: called in this thread with what workers tell, in the order of it.

    Raises what a worker raised, if no other attempt would end better; PartialRun where workers died as often as
    `run.shard_attempts` says; InvalidConfig where there is no room for so many; MissingDependency without Ray Train;
    Interrupted, StorageError.
    """
    from arrowquant_dist.engine.ray.training import RayTraining

    address = _address(run)
    training = RayTraining(address, workers, run.shard_attempts, run.shard_deadline)
    training.run(work, needed_nbytes, cluster_nbytes, on_note)


def _address(run: RunConfig) -> str | None:
    return run.address or os.environ.get("RAY_ADDRESS") or None


__all__ = ["Engine", "EngineEvent", "EngineFacts", "OnEvent", "choose_engine", "train_together"]
