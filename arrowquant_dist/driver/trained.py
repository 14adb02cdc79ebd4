"""Writes what training has found as a dataset, with the same plan, workers, commits and publishing as `quantize`."""

from __future__ import annotations

from dataclasses import replace

from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.config import RunConfig
from arrowquant_dist.driver.clock import RunClock
from arrowquant_dist.driver.outcome import Outcome
from arrowquant_dist.driver.places import read_sidecars
from arrowquant_dist.driver.run import PlannedWork, carry_out
from arrowquant_dist.engine.progress import OnProgress
from arrowquant_dist.plan import plan_table
from arrowquant_dist.plan.trained import Trained, trained_plan
from arrowquant_dist.target.layout import Listing
from arrowquant_dist.target.target import Target


def write_trained(
    dataset: Target,
    checkpoint: Checkpoint,
    trained: Trained,
    run: RunConfig,
    found: Listing,
    on_progress: OnProgress | None = None,
) -> Outcome:
    """Writes the trained layers as a dataset. checkpoint: the original, against which errors are measured. found: the
    listing of the target, which has to be free for a run. Raises as `quantize` does."""
    clock = RunClock()
    with clock.phase("planning"):
        sidecars = read_sidecars(checkpoint, run)
        # blocks read the trained parts through their encodings, so these are files of the source to workers
        files = (*checkpoint.files, *trained.parts.files)
        plan = trained_plan(checkpoint, trained, run)
        dataset.refuse_other_sidecars(sidecars, found)
        identity = dataset.start(plan_table(plan), found).identity
    work = PlannedWork(dataset.store.uri, dataset, replace(checkpoint, files=files), (), plan, run, clock)
    return carry_out(work, identity, {}, sidecars, found, None, on_progress)
