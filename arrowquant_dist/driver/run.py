"""quantize(): plan → engine → reduce → publish. The story, top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from arrowquant_dist.checkpoint.collector import collector_paused
from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.checkpoint.source_codes import SourceCodes, find_codes
from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.config import QuantizationConfig, RunConfig, check_config, check_run
from arrowquant_dist.driver.choice import NO_PROMISE, Chosen, Promise, choose_plan, earlier_choice
from arrowquant_dist.driver.clock import RunClock
from arrowquant_dist.driver.earlier import (
    finished_outcome,
    published_outcome,
    refuse_difference,
    refuse_other_run,
)
from arrowquant_dist.driver.outcome import Outcome
from arrowquant_dist.driver.places import (
    open_target,
    read_sidecars,
    refuse_lost_side_files,
    refuse_own_source,
)
from arrowquant_dist.driver.shards import in_order, run_shards
from arrowquant_dist.engine import EngineFacts, choose_engine
from arrowquant_dist.engine.progress import OnProgress, counting_events
from arrowquant_dist.location import Location, location
from arrowquant_dist.plan import (
    Plan,
    ShardsThere,
    SideInputs,
    StoredSizes,
    make_plan,
    open_side_inputs,
    plan_table,
    refuse_other_weights,
    used_side_inputs,
    worker_memory_nbytes,
)
from arrowquant_dist.reduce import combine_layers, reduce_layers
from arrowquant_dist.report.layer_rows import LAYERS_PATH
from arrowquant_dist.report.render import render
from arrowquant_dist.target.clear import clear, refuse_uncleared
from arrowquant_dist.target.index import write_index
from arrowquant_dist.target.intact import without_damaged
from arrowquant_dist.target.layout import Listing
from arrowquant_dist.target.manifest import Manifest
from arrowquant_dist.target.plan_file import RunIdentity
from arrowquant_dist.target.publish import Draft, prepare, publish
from arrowquant_dist.target.receipt import Receipt
from arrowquant_dist.target.shards import CommittedShards
from arrowquant_dist.target.target import Files, Target
from arrowquant_dist.worker.shard import WorkerContext
from arrowquant_dist.worker.sinks.v2 import V2Parts

if TYPE_CHECKING:
    from arrowquant_dist.driver.repair import Repair


def quantize(
    source: Location,
    target: Location,
    config: QuantizationConfig,
    run: RunConfig,
    on_progress: OnProgress | None = None,
) -> Outcome:
    """Quantizes the checkpoint at `source` into the dataset at `target`. The same call again resumes, or finds it done.

    Raises an ArrowQuantError: for bad input, before the first weight is read or written; otherwise for what stopped
    the run, and then the finished shards are kept at the target, without a manifest to make them a dataset.
    """
    target = _checked_target(target, config, run)
    clock = RunClock()
    with clock.phase("planning"):
        checkpoint = open_checkpoint(source, run.source_storage)
        refuse_lost_side_files(checkpoint, run)
        side_inputs = _side_inputs(checkpoint, config, run)
        dataset = open_target(target, run)
        refuse_own_source(dataset, [checkpoint, *side_inputs.values()])
        chosen = _plan(checkpoint, config, run, side_inputs, dataset)
        plan, promise = chosen.plan, chosen.promise
        read_once = cache(lambda: read_sidecars(checkpoint, run))
        found = _look(dataset, checkpoint, read_once, run)
        repair = _find_damage(dataset, plan, read_once, found) if run.repair else None
        if repair is None and (finished := finished_outcome(dataset, plan, found)) is not None:
            return replace(finished, damaged=()) if run.repair else finished
        sidecars: Files = read_once()
        if repair is not None:
            plan, identity, earlier, sidecars = repair.plan, repair.run, repair.receipts, repair.sidecars
            promise = NO_PROMISE  # a repair restores the dataset as it was
        else:
            identity = _start(dataset, plan, sidecars, found)
        sides = tuple(side_inputs.values())
        work = PlannedWork(target, dataset, checkpoint, sides, plan, run, clock, promise)
        if repair is None:
            with collector_paused():
                earlier = without_damaged(dataset.store, work.committed(identity, found, known={}))
    return carry_out(work, identity, earlier, sidecars, found, repair, on_progress)


@dataclass(frozen=True, slots=True)
class PlannedWork:
    """What a run does once its plan is at the target. side: checkpoints that are read besides the source. promise:
    what the dataset has to satisfy before it is published."""

    target: str
    dataset: Target
    checkpoint: Checkpoint
    side: tuple[Checkpoint, ...]
    plan: Plan
    run: RunConfig
    clock: RunClock
    promise: Promise = NO_PROMISE

    def committed(
        self, identity: RunIdentity, found: Listing, known: Mapping[int, Receipt]
    ) -> dict[int, Receipt]:
        """The committed shards of the run, as CommittedShards.receipts returns them."""
        shards = CommittedShards(self.dataset, self.plan.fingerprint, identity.name)
        return shards.receipts(found, known)


def carry_out(
    work: PlannedWork,
    identity: RunIdentity,
    earlier: Mapping[int, Receipt],
    sidecars: Files,
    found: Listing,
    repair: Repair | None,
    on_progress: OnProgress | None,
) -> Outcome:
    """Does the missing shards, then publishes the dataset. earlier: receipts of the shards that are done. found: the
    listing of the target."""
    target, dataset, plan, run, clock = work.target, work.dataset, work.plan, work.run, work.clock
    missing = [shard for shard in plan.shards if shard.index not in earlier]
    bound = worker_memory_nbytes(plan, target, run)
    engine, ran = choose_engine(run, bound), EngineFacts()
    if missing:
        with clock.phase("running"):
            context = _context(work, identity)
            ran = run_shards(
                engine, dataset, context, missing, counting_events(plan.shards, missing, on_progress)
            )
        with clock.phase("reducing"):
            found = dataset.look()
        if repair is None and (finished := finished_outcome(dataset, plan, found, identity)) is not None:
            return finished  # another driver of this run was first
    with clock.phase("reducing"), collector_paused():
        receipts = in_order(work.committed(identity, found, known=earlier), plan, dataset.store.uri)
        layers = combine_layers(receipts, plan)
        if repair is not None:
            found = repair.make_room(receipts)
    with clock.phase("publishing"):
        facts = clock.facts(engine, ran, resumed=tuple(earlier))
        report = reduce_layers(layers, receipts, plan, facts, bound)
        work.promise.refuse_broken(report, dataset.store.uri)
        draft = _prepare(dataset, identity, plan, receipts, sidecars, found)
        rendered = render(report, layers, identity.name)
        published = publish(dataset, draft, rendered)
    if not published.is_ours:
        return published_outcome(dataset, plan, dataset.look(), identity)
    damaged = repair.damaged if repair is not None else None
    return Outcome(
        report,
        already_finished=False,
        target=dataset.store.uri,
        damaged=damaged,
        sidecars=tuple(sidecars),
        layers=rendered[LAYERS_PATH],
    )


def plan_only(source: Location, target: Location, config: QuantizationConfig, run: RunConfig) -> Plan:
    """The plan that the same call of `quantize` would make; headers are read and checked, nothing is written."""
    return _planned(source, target, config, run).plan


def preview(source: Location, target: Location, config: QuantizationConfig, run: RunConfig) -> Preview:
    """The plan as `plan_only` makes it, the size of its parts estimated from some rows of a few layers, and how much
    of it the target already holds."""
    from arrowquant_dist.sizing import estimated_sizes

    made = _planned(source, target, config, run)
    sizes = estimated_sizes(made.plan, made.checkpoint, run)
    return Preview(made.plan, sizes, _there(made, run))


@dataclass(frozen=True, slots=True)
class Preview:
    """What a run would do. sizes: estimated size of its parts. there: which shards are already at the target."""

    plan: Plan
    sizes: StoredSizes
    there: ShardsThere


@dataclass(frozen=True, slots=True)
class _Planned:
    """A plan that has not been started. found: the listing of the target."""

    plan: Plan
    checkpoint: Checkpoint
    dataset: Target
    found: Listing


def _planned(source: Location, target: Location, config: QuantizationConfig, run: RunConfig) -> _Planned:
    target = _checked_target(target, config, run)
    checkpoint = open_checkpoint(source, run.source_storage)
    refuse_lost_side_files(checkpoint, run)
    side_inputs = _side_inputs(checkpoint, config, run)
    dataset = open_target(target, run)
    refuse_own_source(dataset, [checkpoint, *side_inputs.values()])
    plan = _plan(checkpoint, config, run, side_inputs, dataset).plan
    found = dataset.look(checkpoint.sidecars)
    if run.overwrite:
        refuse_uncleared(dataset, found, read_sidecars(checkpoint, run))
    else:
        _refuse_foreign(dataset, found, lambda: read_sidecars(checkpoint, run))
        refuse_other_run(dataset, plan, found)
    return _Planned(plan, checkpoint, dataset, found)


def _there(made: _Planned, run: RunConfig) -> ShardsThere:
    state = made.dataset.state(made.found)
    if run.overwrite and state != "empty":
        return ShardsThere("replaced", 0)
    if state == "finished":
        return ShardsThere("finished", len(made.plan.shards))
    planned = made.dataset.planned() if state == "started" else None
    if planned is None:
        return ShardsThere("empty", 0)
    shards = CommittedShards(made.dataset, planned.identity.fingerprint, planned.identity.name)
    return ShardsThere("started", len(shards.receipts(made.found, known={})))


@contextmanager
def opened_choice(
    source: Location, config: QuantizationConfig, run: RunConfig
) -> Iterator[Callable[[float], QuantizationConfig]]:
    """Yields a function that returns the config at any step of method `size` for `config` (sizing.opened_steps)."""
    from arrowquant_dist.sizing import opened_steps

    checkpoint = open_checkpoint(source, run.source_storage)
    codes = _codes(checkpoint, config, run)
    plan = make_plan(checkpoint, config, run, _side_inputs(checkpoint, config, run), codes)
    with opened_steps(plan, checkpoint, config, run) as at:
        yield at


def chosen_before(
    target: Location, config: QuantizationConfig, asked: Mapping[str, Any], run: RunConfig
) -> QuantizationConfig | None:
    """The config at the target that was chosen for `asked`, what `config` asks for; None if there is none."""
    if run.overwrite:
        return None
    found = earlier_choice(config, asked, open_target(_checked_target(target, config, run), run))
    return found[0] if found is not None else None


def _checked_target(target: Location, config: QuantizationConfig, run: RunConfig) -> str:
    check_config(config)
    check_run(run)
    return location(target, "target")


def _side_inputs(checkpoint: Checkpoint, config: QuantizationConfig, run: RunConfig) -> SideInputs:
    """The side inputs of the config's methods, which have to be made from the source's weights."""
    found = open_side_inputs(config, run.source_storage)
    refuse_other_weights(config, found, checkpoint, run.source_storage)
    return found


def _plan(
    checkpoint: Checkpoint,
    config: QuantizationConfig,
    run: RunConfig,
    side_inputs: SideInputs,
    dataset: Target,
) -> Chosen:
    codes = _codes(checkpoint, config, run)

    def plan_of(table: QuantizationConfig) -> Plan:
        return make_plan(checkpoint, table, run, used_side_inputs(table, side_inputs), codes)

    return choose_plan(config, checkpoint, run, plan_of, dataset, side_inputs)


def _codes(checkpoint: Checkpoint, config: QuantizationConfig, run: RunConfig) -> SourceCodes:
    """The source's codes that are kept as they are. Without keep_codes nothing is read for this."""
    return find_codes(checkpoint, run.source_storage) if config.keep_codes else {}


def _find_damage(dataset: Target, plan: Plan, sidecars: Callable[[], Files], found: Listing) -> Repair | None:
    from arrowquant_dist.driver.repair import find_damage  # imported here, since no other run needs it

    return find_damage(dataset, plan, sidecars(), found)


def _look(dataset: Target, checkpoint: Checkpoint, sidecars: Callable[[], Files], run: RunConfig) -> Listing:
    """The listing of the target, after --overwrite has cleared it where that was asked for."""
    found = dataset.look(checkpoint.sidecars)
    if run.overwrite:
        return clear(dataset, found, sidecars())
    _refuse_foreign(dataset, found, sidecars)
    return found


def _refuse_foreign(dataset: Target, found: Listing, sidecars: Callable[[], Files]) -> None:
    """Raises TargetConflict if the target holds foreign files. sidecars: called only if they decide whose these are."""
    if dataset.state(found) in ("left", "foreign"):
        dataset.refuse_foreign(found, sidecars())


def _start(dataset: Target, plan: Plan, sidecars: Files, found: Listing) -> RunIdentity:
    """Puts this plan at the target unless it is there already; TargetConflict if the target holds anything else."""
    dataset.refuse_other_sidecars(sidecars, found)
    planned = dataset.start(plan_table(plan), found)
    refuse_difference(dataset, planned, plan)
    return planned.identity


def _context(work: PlannedWork, identity: RunIdentity) -> WorkerContext:
    return WorkerContext(
        work.target,
        work.plan.fingerprint,
        V2Parts(work.plan.compression),
        work.checkpoint.files,
        work.run.source_storage,
        work.run.target_storage,
        tuple(file for side in work.side for file in side.files),
        identity.name,
    )


def _prepare(
    dataset: Target,
    identity: RunIdentity,
    plan: Plan,
    receipts: Sequence[Receipt],
    sidecars: Files,
    found: Listing,
) -> Draft:
    """Puts everything of the dataset but its report and its manifest in place."""
    index = write_index((receipt.part, receipt.shard, row) for receipt in receipts for row in receipt.rows)
    manifest = Manifest.of(
        receipts,
        index=index,
        sidecars=sidecars,
        fingerprint=plan.fingerprint,
        source=plan.source,
        config=plan.config,
        compression=plan.compression,
        aliases=plan.aliases,
    )
    return prepare(dataset, identity, manifest, index, sidecars, found)
