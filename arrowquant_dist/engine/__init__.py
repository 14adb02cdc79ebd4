"""Who runs the workers. An engine takes shards and returns when each is committed, or raises what stopped it.

Which shards are done is never an engine's knowledge: the commits at the target say so.
"""

from __future__ import annotations

import os

from arrowquant_dist.config import RunConfig
from arrowquant_dist.engine.run import Engine, EngineEvent, EngineFacts, OnEvent


def choose_engine(run: RunConfig, worker_memory_nbytes: int) -> Engine:
    """`inline`, `ray`, or for `auto`: ray where an address is given or RAY_ADDRESS is set, else inline."""
    address = run.address or os.environ.get("RAY_ADDRESS") or None
    if run.engine == "ray" or (run.engine == "auto" and address is not None):
        from arrowquant_dist.engine.ray import Patience, RayEngine

        patience = Patience(attempts=run.shard_attempts, deadline=run.shard_deadline)
        return RayEngine(address, run.workers, worker_memory_nbytes, patience)
    from arrowquant_dist.engine.inline import InlineEngine

    return InlineEngine(run.workers)


__all__ = ["Engine", "EngineEvent", "EngineFacts", "OnEvent", "choose_engine"]
