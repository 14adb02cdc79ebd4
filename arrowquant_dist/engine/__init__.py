"""Engines run the workers. An engine takes shards and returns when each is committed, or raises what stopped it.

An engine never decides which shards are done: the commits at the target tell.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from arrowquant_dist.config import RunConfig
from arrowquant_dist.engine.run import Engine, EngineEvent, EngineFacts, OnEvent
from arrowquant_dist.engine.training import JointWork


def choose_engine(run: RunConfig, worker_memory_nbytes: int) -> Engine:
    """The engine that `run` names. `auto`: ray if an address is given or RAY_ADDRESS is set, else inline."""
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
    """Runs the workers and returns when all have ended. Uses Ray at `run.address` or RAY_ADDRESS, else one started on
    this machine.

    needed_nbytes: memory that each worker needs at least. cluster_nbytes: memory that a cluster's scheduler reserves
    for each worker. on_note: called in this thread with the workers' notes, in their order.

    Raises what a worker raised, if another attempt would end no better; PartialRun if workers died as often as
    `run.shard_attempts` allows; InvalidConfig if there is no room for so many workers; MissingDependency without Ray
    Train; Interrupted; StorageError.
    """
    from arrowquant_dist.engine.ray.training import RayTraining

    address = _address(run)
    training = RayTraining(address, workers, run.shard_attempts, run.shard_deadline)
    training.run(work, needed_nbytes, cluster_nbytes, on_note)


def _address(run: RunConfig) -> str | None:
    return run.address or os.environ.get("RAY_ADDRESS") or None


__all__ = ["Engine", "EngineEvent", "EngineFacts", "OnEvent", "choose_engine", "train_together"]
