"""quantize(): plan → engine → reduce → publish. The story, top to bottom."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.config import QuantizationConfig, RunConfig
from arrowquant_dist.engine import EngineEvent, EngineFacts, choose_engine
from arrowquant_dist.engine.run import finished
from arrowquant_dist.errors import IncompleteDataset, InvalidConfig, TargetConflict
from arrowquant_dist.plan import (
    Plan,
    Shard,
    make_plan,
    plan_from_table,
    plan_table,
    worker_memory_nbytes,
)
from arrowquant_dist.reduce import HostFacts, Report, RunFacts, combine_layers, reduce_layers
from arrowquant_dist.report.render import load_report, render
from arrowquant_dist.store.files import Store, is_local, redact
from arrowquant_dist.store.index import write_index
from arrowquant_dist.store.manifest import Manifest
from arrowquant_dist.store.receipt import Receipt
from arrowquant_dist.store.target import Target
from arrowquant_dist.worker import WorkerContext


@dataclass(frozen=True, slots=True)
class Progress:
    """What is done of the source, shards of an earlier run included. workers_alive: 0 before the engine has any."""

    done_nbytes: int
    total_nbytes: int
    done_layers: int
    total_layers: int
    workers_alive: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """already_finished: the target was complete before; `report` is that of the run that completed it."""

    report: Report
    already_finished: bool
    target: str


OnEvent = Callable[[Progress], None]


def quantize(
    source: str, target: str, config: QuantizationConfig, run: RunConfig, on_event: OnEvent | None = None
) -> Outcome:
    """Quantizes the checkpoint at `source` into the dataset at `target`; the same call again resumes or is done.

    Raises an ArrowQuantError: bad input before the first weight is read or written, or what stopped the run; then the
    finished shards are kept at the target, and no manifest makes them a dataset.
    """
    started_at, start = datetime.now(UTC), time.perf_counter()
    checkpoint = open_checkpoint(source, run.source_storage)
    plan = make_plan(checkpoint, config, run)
    dataset = _start(Target.open(target, run.target_storage), checkpoint, plan, run)
    if dataset.state() == "finished":
        report = load_report(target, run.target_storage)
        return Outcome(report, already_finished=True, target=dataset.store.uri)
    resumed = dataset.receipts()
    missing = [shard for shard in plan.shards if shard.index not in resumed]
    engine = choose_engine(run, worker_memory_nbytes(plan, run.transfer))
    ran = EngineFacts()
    if missing:
        ran = engine.run(_context(target, checkpoint, plan, run), missing, _counted(plan, missing, on_event))
    receipts = _receipts(dataset, plan)
    seconds = time.perf_counter() - start
    facts = RunFacts(
        engine.name,
        engine.workers,
        started_at.isoformat(),
        seconds,
        tuple(resumed),
        HostFacts.here(),
        **asdict(ran),
    )
    layers = combine_layers(receipts, plan)
    report = reduce_layers(layers, receipts, plan, facts)
    _publish(dataset, plan, receipts, render(report, layers), _sidecars(checkpoint, run))
    return Outcome(report, already_finished=False, target=dataset.store.uri)


def plan_only(source: str, target: str, config: QuantizationConfig, run: RunConfig) -> Plan:
    """The plan of the same call of `quantize`: headers are read and everything is checked, nothing is written."""
    checkpoint = open_checkpoint(source, run.source_storage)
    plan = make_plan(checkpoint, config, run)
    dataset = Target.open(target, run.target_storage)
    _refuse_own_source(dataset, checkpoint)
    if not run.overwrite:
        _refuse_others(dataset, plan)
    return plan


def _start(dataset: Target, checkpoint: Checkpoint, plan: Plan, run: RunConfig) -> Target:
    """The target with this plan in it, new or as it was; TargetConflict where it holds anything else."""
    _refuse_own_source(dataset, checkpoint)
    if run.overwrite:
        dataset.clear()
    started = plan_from_table(dataset.start(plan_table(plan)))
    _refuse_difference(dataset, started, plan)
    return dataset


def _refuse_others(dataset: Target, plan: Plan) -> None:
    dataset.refuse_foreign()
    planned = dataset.planned()
    if planned is not None:
        _refuse_difference(dataset, plan_from_table(planned), plan)


def _refuse_difference(dataset: Target, started: Plan, plan: Plan) -> None:
    if started.fingerprint != plan.fingerprint:
        raise TargetConflict(
            f"the target holds another plan's run ({'; '.join(started.differences(plan))}); "
            "choose another target, or --overwrite to replace it",
            uri=dataset.store.uri,
        )


def _refuse_own_source(dataset: Target, checkpoint: Checkpoint) -> None:
    """A target that holds a file of its own source would be overwritten while it is read."""
    folder = _real_place(dataset.store.uri)
    for file in checkpoint.files:
        if any(place.startswith(f"{folder}/") for place in _real_places(redact(file.uri))):
            message = f"the target holds the source itself ({redact(file.uri)}); choose another target"
            raise InvalidConfig(message)


def _real_places(uri: str) -> tuple[str, str]:
    """Where a file is, and where its bytes are: a local one may be a link into a cache."""
    folder, _, name = uri.rpartition("/")
    return f"{_real_place(folder)}/{name}", _real_place(uri)


def _real_place(uri: str) -> str:
    """One spelling of a place: local ones without links and `..`, so that no other name hides that two are one."""
    return str(Path(uri).resolve()) if is_local(uri) else uri.rstrip("/")


def _context(target: str, checkpoint: Checkpoint, plan: Plan, run: RunConfig) -> WorkerContext:
    return WorkerContext(
        target,
        plan.fingerprint,
        plan.compression,
        checkpoint.files,
        run.source_storage,
        run.target_storage,
    )


def _counted(plan: Plan, missing: Sequence[Shard], on_event: OnEvent | None) -> Callable[[EngineEvent], None]:
    """What an engine calls, which adds up and reports; from any thread."""
    if on_event is None:
        return lambda _: None
    counter = _Counter(plan, missing, on_event)
    counter.add(finished([], 0))
    return counter.add


@dataclass(slots=True)
class _Counter:
    plan: Plan
    missing: Sequence[Shard]
    on_event: OnEvent
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _nbytes: int = 0
    _layers: int = 0
    _total: EngineEvent = field(default_factory=lambda: finished([], 0))

    def __post_init__(self) -> None:
        self._total = finished(list(self.plan.blocks), 0)
        left = finished([block for shard in self.missing for block in shard.blocks], 0)
        self._nbytes, self._layers = self._total.nbytes - left.nbytes, self._total.layers - left.layers

    def add(self, event: EngineEvent) -> None:
        with self._lock:
            self._nbytes += event.nbytes
            self._layers += event.layers
            total = self._total
            progress = Progress(self._nbytes, total.nbytes, self._layers, total.layers, event.workers_alive)
            self.on_event(progress)


def _receipts(dataset: Target, plan: Plan) -> list[Receipt]:
    """Every shard's, in order: what the target says, not what this process remembers."""
    receipts = dataset.receipts()
    missing = [shard.index for shard in plan.shards if shard.index not in receipts]
    if missing:
        shown = ", ".join(map(str, missing[:5])) + (" …" if len(missing) > 5 else "")
        message = f"{len(missing)} of {len(plan.shards)} shards are not committed ({shown}); run the same command again"
        raise IncompleteDataset(message, uri=dataset.store.uri)
    return [receipts[shard.index] for shard in plan.shards]


def _sidecars(checkpoint: Checkpoint, run: RunConfig) -> dict[str, bytes]:
    """The small files that belong to the model: tokenizer, config, README."""
    if not checkpoint.sidecars:
        return {}
    store = Store.open(checkpoint.uri, run.source_storage)
    return {path: store.read(path) for path in checkpoint.sidecars}


def _publish(
    dataset: Target,
    plan: Plan,
    receipts: Sequence[Receipt],
    report_files: dict[str, bytes],
    sidecars: dict[str, bytes],
) -> None:
    """Index, report and sidecars, then the manifest, which makes all of it a dataset."""
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
    dataset.publish(manifest, index, {**sidecars, **report_files})


class ArrowQuantizer:
    """`quantize` as an object: ArrowQuantizer(config).quantize(source, target) returns the Report.

    run: engine, workers, sizes, storage options; default RunConfig().
    """

    def __init__(self, config: QuantizationConfig, run: RunConfig | None = None) -> None:
        self.config = config
        self.run = run or RunConfig()

    def quantize(self, source: str, target: str, on_event: OnEvent | None = None) -> Report:
        """See driver.quantize."""
        return quantize(source, target, self.config, self.run, on_event).report
