"""Measures a worker's memory as in production: in a process of its own, with the environment of a cluster's workers."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.checkpoint.source_codes import find_codes
from arrowquant_dist.config import QuantizationConfig, RunConfig
from arrowquant_dist.engine.ray.cluster import WORKER_ENVIRONMENT
from arrowquant_dist.plan import Shard, make_plan, open_side_inputs, plan_table, worker_memory_nbytes
from arrowquant_dist.target.target import Target
from arrowquant_dist.worker.shard import WorkerContext
from arrowquant_dist.worker.sinks.v2 import V2Parts

MIB = 1 << 20
# ray: because the process of an actor has it loaded. pickle: how Ray sends a context and shards to it.
_WORKER = """
import json, pickle, sys
import ray
from arrowquant_dist.machine import peak_memory_nbytes
from arrowquant_dist.worker.shard import ShardWorker
context, shards = pickle.load(open(sys.argv[1], "rb"))
worker = ShardWorker(context)
idle = peak_memory_nbytes()
for shard in shards:
    worker.run(shard, lambda block: None, lambda: False)
print(json.dumps([idle, peak_memory_nbytes()]))
"""


@dataclass(frozen=True, slots=True)
class Taken:
    """Memory of a worker.

    idle_nbytes: largest resident set of its process before the first shard. nbytes: the same after the last shard.
    bound_nbytes: the plan's bound for it.
    """

    idle_nbytes: int
    nbytes: int
    bound_nbytes: int

    @property
    def share(self) -> float:
        return self.nbytes / self.bound_nbytes

    def __str__(self) -> str:
        idle, peak, bound = (n / MIB for n in (self.idle_nbytes, self.nbytes, self.bound_nbytes))
        return f"idle {idle:.0f}, peak {peak:.0f} MiB of {bound:.0f}: {self.share:.0%}"


def taken(source: str, target: str, config: QuantizationConfig, run: RunConfig, folder: Path) -> Taken:
    """Memory of one worker that does all of `source` as one shard; small models would be cut into shards of one block.

    folder: a folder for the input of the worker's process.
    """
    checkpoint = open_checkpoint(source, run.source_storage)
    codes = find_codes(checkpoint, run.source_storage) if config.keep_codes else {}
    side_inputs = open_side_inputs(config, run.source_storage)
    plan = make_plan(checkpoint, config, run, side_inputs, codes)
    plan = replace(plan, shards=(Shard(0, tuple(plan.blocks)),))
    dataset = Target.open(target, run.target_storage)
    dataset.start(plan_table(plan), dataset.look())
    context = WorkerContext(
        target,
        plan.fingerprint,
        V2Parts(plan.compression),
        checkpoint.files,
        run.source_storage,
        run.target_storage,
        side_files=tuple(file for side in side_inputs.values() for file in side.files),
    )
    told = folder / "worker.pickle"
    told.write_bytes(pickle.dumps((context, plan.shards)))
    done = subprocess.run(
        [sys.executable, "-c", _WORKER, str(told)],
        env={**os.environ, **WORKER_ENVIRONMENT},
        stdout=subprocess.PIPE,
        check=True,
    )
    idle, peak = json.loads(done.stdout)
    return Taken(idle, peak, worker_memory_nbytes(plan, target, run))
