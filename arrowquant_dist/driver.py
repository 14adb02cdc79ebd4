"""quantize(): plan → engine → reduce → publish. The story, top to bottom."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from arrowquant_dist.checkpoint.collector import collector_paused
from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.checkpoint.sidecars import published
from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.config import QuantizationConfig, RunConfig, Storage
from arrowquant_dist.engine import Engine, EngineEvent, EngineFacts, choose_engine
from arrowquant_dist.engine.run import finished
from arrowquant_dist.errors import (
    ArrowQuantError,
    IncompleteDataset,
    Interrupted,
    InvalidConfig,
    TargetConflict,
)
from arrowquant_dist.plan import (
    Plan,
    Shard,
    differences,
    is_same_work,
    make_plan,
    plan_from_table,
    plan_table,
    worker_memory_nbytes,
)
from arrowquant_dist.reduce import HostFacts, LayerMetrics, Report, RunFacts, combine_layers, reduce_layers
from arrowquant_dist.report.render import load_report, render
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.uris import is_local, redact
from arrowquant_dist.target.index import write_index
from arrowquant_dist.target.layout import PLAN_PATH, Listing
from arrowquant_dist.target.manifest import MANIFEST_PATH, Manifest
from arrowquant_dist.target.receipt import Receipt
from arrowquant_dist.target.target import Target
from arrowquant_dist.worker import WorkerContext
from arrowquant_dist.worker.sinks.v2 import V2Parts

_REQUESTS = 4  # times as many at a time as a worker's
_MOST_REQUESTS = 256  # what Transfer takes


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
    clock = _Clock()
    with clock.phase("planning"):
        checkpoint = open_checkpoint(source, run.source_storage)
        plan = make_plan(checkpoint, config, run)
        dataset = Target.open(target, _storage(run))
        found = _look(dataset, checkpoint, run)
        if MANIFEST_PATH in found:
            return _finished(dataset, plan, found, target, run)
        sidecars = _sidecars(checkpoint, run)
        _start(dataset, plan, sidecars, found)
        with collector_paused():
            earlier = dataset.receipts(found)
    missing = [shard for shard in plan.shards if shard.index not in earlier]
    engine, ran = choose_engine(run, worker_memory_nbytes(plan)), EngineFacts()
    if missing:
        with clock.phase("running"):
            context = _context(target, checkpoint, plan, run)
            ran = _run(engine, dataset, context, missing, _counted(plan, missing, on_event))
        with clock.phase("reducing"):
            found = dataset.look()
        if MANIFEST_PATH in found:  # another driver of this plan was first
            return _finished(dataset, plan, found, target, run)
    with clock.phase("reducing"), collector_paused():
        receipts = _receipts(dataset, plan, found, earlier)
        layers = combine_layers(receipts, plan)

    def make_report() -> Report:
        return reduce_layers(layers, receipts, plan, clock.facts(engine, ran, resumed=tuple(earlier)))

    with clock.phase("publishing"):
        report = _publish(dataset, plan, receipts, layers, sidecars, make_report, found)
    if report is None:
        return _finished(dataset, plan, found, target, run)
    return Outcome(report, already_finished=False, target=dataset.store.uri)


def plan_only(source: str, target: str, config: QuantizationConfig, run: RunConfig) -> Plan:
    """The plan of the same call of `quantize`: headers are read and everything is checked, nothing is written."""
    checkpoint = open_checkpoint(source, run.source_storage)
    plan = make_plan(checkpoint, config, run)
    dataset = Target.open(target, _storage(run))
    _refuse_own_source(dataset, checkpoint)
    found = dataset.look()
    dataset.refuse_foreign(found)
    if not run.overwrite and MANIFEST_PATH in found:
        _refuse_other_work(dataset, dataset.manifest(), plan)
    elif not run.overwrite and PLAN_PATH in found:
        _refuse_difference(dataset, dataset.planned(), plan)
    return plan


def _storage(run: RunConfig) -> Storage:
    """As workers reach the target, with more requests in flight: the driver's are many and small."""
    storage = run.target_storage
    requests = min(_REQUESTS * storage.transfer.requests, _MOST_REQUESTS)
    return replace(storage, transfer=replace(storage.transfer, requests=requests))


def _look(dataset: Target, checkpoint: Checkpoint, run: RunConfig) -> Listing:
    """What is at the target, or is left of it by --overwrite."""
    _refuse_own_source(dataset, checkpoint)
    found = dataset.look()
    if run.overwrite:
        return dataset.clear(found)
    dataset.refuse_foreign(found)
    return found


def _start(dataset: Target, plan: Plan, sidecars: Mapping[str, bytes], found: Listing) -> None:
    """The target gets this plan, or has it; TargetConflict where it holds anything else."""
    dataset.refuse_other_sidecars(sidecars, found)
    started = dataset.start(plan_table(plan), found)
    _refuse_difference(dataset, started, plan)


def _finished(dataset: Target, plan: Plan, found: Listing, target: str, run: RunConfig) -> Outcome:
    """The outcome of whoever published the dataset, which is all there; what lost against its parts is removed."""
    manifest = dataset.manifest()
    _refuse_other_work(dataset, manifest, plan)
    dataset.sweep(manifest, found)
    report = load_report(target, _storage(run))
    return Outcome(report, already_finished=True, target=dataset.store.uri)


def _refuse_difference(dataset: Target, planned: pa.Table | None, plan: Plan) -> None:
    """planned: the plan at the target, `dataset.fingerprint` is its."""
    if planned is not None and dataset.fingerprint != plan.fingerprint:
        changes = "; ".join(differences(plan_from_table(planned), plan))
        raise TargetConflict(
            f"the target holds another plan's run ({changes}); choose another target, or --overwrite to replace it",
            uri=dataset.store.uri,
        )


def _refuse_other_work(dataset: Target, manifest: Manifest | None, plan: Plan) -> None:
    """Of a finished dataset: where other code has done the same work, it is what was asked for."""
    if manifest is None or manifest.fingerprint == plan.fingerprint:
        return
    planned = dataset.planned()
    if planned is None or dataset.fingerprint != manifest.fingerprint:
        message = "another plan's dataset is here; choose another target, or --overwrite"
        raise TargetConflict(message, uri=dataset.store.uri)
    if not is_same_work(plan_from_table(planned), plan):
        _refuse_difference(dataset, planned, plan)


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
        V2Parts(plan.compression),
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
            self.on_event(
                Progress(
                    done_nbytes=_within(self._nbytes, total.nbytes),
                    total_nbytes=total.nbytes,
                    done_layers=_within(self._layers, total.layers),
                    total_layers=total.layers,
                    workers_alive=event.workers_alive,
                )
            )


def _within(count: int, total: int) -> int:
    """An attempt that died may be taken back or done twice; more than all, or less than nothing, is never done."""
    return max(0, min(count, total))


def _run(
    engine: Engine,
    dataset: Target,
    context: WorkerContext,
    missing: Sequence[Shard],
    on_event: Callable[[EngineEvent], None],
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


def _is_published(dataset: Target) -> bool:
    """No, too, where the target cannot be asked: what is known to have failed is then what to tell."""
    try:
        return dataset.manifest() is not None
    except ArrowQuantError:
        return False


def _receipts(dataset: Target, plan: Plan, found: Listing, earlier: Mapping[int, Receipt]) -> list[Receipt]:
    """Every shard's, in order: what the target says, not what this process remembers."""
    receipts = dataset.receipts(found, known=earlier)
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
    store = open_store(checkpoint.uri, run.source_storage)
    return {path: published(path, store.read(path), checkpoint) for path in checkpoint.sidecars}


def _publish(
    dataset: Target,
    plan: Plan,
    receipts: Sequence[Receipt],
    layers: Sequence[LayerMetrics],
    sidecars: Mapping[str, bytes],
    make_report: Callable[[], Report],
    found: Listing,
) -> Report | None:
    """Index, sidecars and report, then the manifest, which makes all of it a dataset. None: another driver did."""
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
    reports: list[Report] = []

    def report_files() -> dict[str, bytes]:
        reports.append(make_report())
        return render(reports[0], layers)

    published = dataset.publish(manifest, index, sidecars, report=report_files, listing=found)
    return reports[0] if reports and published == replace(manifest, index=published.index) else None


class _Clock:
    """Seconds of the driver's phases, and since it began."""

    def __init__(self) -> None:
        self._started_at, self._started = datetime.now(UTC), time.perf_counter()
        self._seconds: dict[str, float] = {}
        self._open: tuple[str, float] | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._open = name, time.perf_counter()
        try:
            yield
        finally:
            self._seconds, self._open = self._until(time.perf_counter()), None

    def facts(self, engine: Engine, ran: EngineFacts, resumed: tuple[int, ...]) -> RunFacts:
        """The run until now."""
        now = time.perf_counter()
        return RunFacts(
            engine=engine.name,
            workers=engine.workers,
            started_at=self._started_at.isoformat(),
            wall_seconds=now - self._started,
            resumed_shards=resumed,
            host=HostFacts.here(),
            phases=self._until(now),
            shard_retries=ran.shard_retries,
            stolen=ran.stolen,
            wasted_seconds=ran.wasted_seconds,
            worker_seconds=ran.worker_seconds,
        )

    def _until(self, now: float) -> dict[str, float]:
        """The open phase included."""
        seconds = dict(self._seconds)
        if self._open is not None:
            name, since = self._open
            seconds[name] = seconds.get(name, 0.0) + now - since
        return seconds


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
