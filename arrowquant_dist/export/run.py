"""export(): a dataset in a format that other programs serve from. The story, top to bottom."""

from __future__ import annotations

from dataclasses import dataclass, replace

from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.config import RunConfig, Storage, check_run
from arrowquant_dist.config.arguments import check_made
from arrowquant_dist.config.sizes import rounded_size
from arrowquant_dist.dataset.bare_folder import refuse_begun_export, refuse_export
from arrowquant_dist.engine import Engine, choose_engine
from arrowquant_dist.engine.progress import OnProgress, counting_events
from arrowquant_dist.errors import InvalidConfig, MemoryBudgetExceeded, listed
from arrowquant_dist.export.files import OutputFile
from arrowquant_dist.export.format import ExportDraft, Model
from arrowquant_dist.export.options import ExportOptions
from arrowquant_dist.export.place import ExportPlace, Output, SideFiles
from arrowquant_dist.export.record import ExportOrigin, ExportRecord, files_hash
from arrowquant_dist.export.registry import format_of
from arrowquant_dist.export.source import requantize_source
from arrowquant_dist.export.steps import StepCutter
from arrowquant_dist.export.worker import ExportContext
from arrowquant_dist.folder.components import TOP, named_components
from arrowquant_dist.folder.listing import open_folder
from arrowquant_dist.location import Location, location
from arrowquant_dist.progress.callers import told_to
from arrowquant_dist.progress.runs import shown_progress
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.uris import compared_place, is_ambiguous, is_local, redact
from arrowquant_dist.target.manifest import MANIFEST_PATH, hash_of

_WRITER_SHARE = 4  # of a worker's memory, at most a fourth holds what is on its way to the storage
_LEAST_UPLOAD_NBYTES = 5 << 20  # S3's
_PARTS_HELD = 3  # at least: one that is filled, two that are sent
_MOST_PARTS_HELD = 7
_RECYCLED_SHARE = 8  # of a worker's memory: an eighth is for what waits for its next use
_DIRECT_NBYTES = 48 << 20
_LEAST_WORKER_NBYTES = 64 << 20
_MIB = 1 << 20
_PROCESS_NBYTES = 24 << 20  # of the budget, for what is not weights: the index, threads, hashes
_CLIENT_NBYTES = (
    24 << 20
)  # beside that, for the client of an object store: it takes 31 MiB before it moves a weight


@dataclass(frozen=True, slots=True)
class Exported:
    """What is at `out`. already_finished: it was complete before."""

    out: str
    record: ExportRecord
    already_finished: bool


def export_dataset(
    target: Location,
    out: Location,
    options: ExportOptions,
    run: RunConfig | None = None,
    *,
    progress: OnProgress | bool | None = True,
) -> Exported:
    """Writes the dataset at `target` to the folder `out` in a format that other programs load. The same call again
    resumes, or returns the finished result.

    target: a finished dataset, a folder or a URL.
    out: a new folder or a URL.
    options: the format and its settings.
    run: engine, workers and storage options; default: RunConfig().
    progress: True shows progress in a terminal or a notebook, and only there; False shows none; a function is called
        with a driver.Progress (bytes and layers done and in total, workers), from any thread, one call at a time.

    Raises an ArrowQuantError: for bad input, and for layers that the format cannot hold, before the first byte is
    written; otherwise the error that stopped the export. Complete files are then kept, without what would make a model
    of them.
    """
    with told_to(progress, shown_progress, "export") as told:
        return _export(plan_export(target, out, options, RunConfig() if run is None else run), options, told)


def _export(work: PlannedExport, options: ExportOptions, told: OnProgress | None) -> Exported:
    found = work.place.look()
    if options.overwrite:
        work.place.clear(work.output, found)
    elif (record := work.place.finished(work.output, found)) is not None:
        return Exported(work.place.store.uri, record, already_finished=True)
    else:
        work.place.refuse_others(work.output, found)
    files = work.output.weights
    facts = work.engine.run(work.context, files, counting_events(files, files, told))
    record = work.place.finish(work.output, facts.notices.values())
    return Exported(work.place.store.uri, record, already_finished=False)


@dataclass(frozen=True, slots=True)
class PlannedExport:
    """An export before its first byte. draft: what becomes of the layers of `model`; output: the files, with the steps
    of workers that have `context`."""

    model: Model
    draft: ExportDraft
    output: Output
    context: ExportContext
    engine: Engine
    place: ExportPlace


def plan_export(target: Location, out: Location, options: ExportOptions, run: RunConfig) -> PlannedExport:
    """What the same call of `export_dataset` does; headers and small files are read, scales and a few values where it
    depends on them, nothing is written."""
    check_made("options", options, ExportOptions)
    check_run(run)
    target, out = location(target, "target"), location(out, "out")
    _refuse_place(target, out)
    form = format_of(options)
    model = open_model(target, options, run)
    draft = form.draft(model)
    record = ExportRecord.of(form, draft, _origin(model), options.max_file_nbytes)
    files = form.files(model, draft, record.mark, options.max_file_nbytes)
    engine = choose_engine(run, options.memory_nbytes)
    sharing = engine.workers_of_a_process(len(files.weights))
    memory, weights = _divided(model, files.weights, options.memory_nbytes, sharing, out, run.target_storage)
    if memory.workers < sharing:
        engine = choose_engine(run.replace(workers=memory.workers), options.memory_nbytes)
    output = Output(record, weights, SideFiles.of(model, draft, files))
    context = ExportContext(
        model.checkpoint.uri,
        out,
        model.checkpoint.files,
        memory.reading_nbytes,
        memory.recycled_nbytes * 3 // 4,  # the rest is what pieces are larger than what is in them
        memory.workers,
        run.source_storage,
        memory.storage,
        requantize_source(model, draft.layers, run.source_storage),
        run.source_storage,
    )
    return PlannedExport(model, draft, output, context, engine, ExportPlace(open_store(out, memory.storage)))


def open_model(target: str, options: ExportOptions, run: RunConfig) -> Model:
    """The dataset at `target`, and what its layers may be quantized anew from. No values are read.
    IncompleteDataset, CorruptWeights where its small files are not all those that its manifest lists."""
    store = open_store(target, run.source_storage)
    refuse_export(store)
    checkpoint = open_checkpoint(target, run.source_storage)
    dataset = checkpoint.dataset
    if dataset is None:
        refuse_begun_export(store)
        message = "this is a checkpoint, not a dataset; quantize it first, then export the target of that run"
        raise InvalidConfig(message, uri=redact(target))
    # a dataset may be one file, which is no folder; without small files no config names folders
    components = named_components(open_folder(dataset.store)) if checkpoint.sidecars else [TOP]
    source = open_checkpoint(options.source, run.source_storage) if options.source is not None else None
    model = Model(dataset, checkpoint, components, source)
    model.check_side_files()
    return model


def _origin(model: Model) -> ExportOrigin:
    files = [
        (_name(file.uri, model.checkpoint.uri), file.nbytes, file.version) for file in model.checkpoint.files
    ]
    dataset, source = model.dataset, model.source
    manifest = (
        hash_of(dataset.store.read(MANIFEST_PATH)) if dataset.manifest is not None else files_hash(files)
    )
    if source is None:
        return ExportOrigin(dataset.uri, manifest)
    read = [(_name(file.uri, source.uri), file.nbytes, file.version) for file in source.files]
    return ExportOrigin(dataset.uri, manifest, redact(source.uri), files_hash(read))


def _name(uri: str, folder: str) -> str:
    return uri.removeprefix(folder).lstrip("/")


def _refuse_place(target: str, out: str) -> None:
    if is_ambiguous(out):
        message = "the output has an empty name, `.` or `..` in it; spell it without them"
        raise InvalidConfig(message, uri=redact(out))
    inner, outer = compared_place(out), compared_place(target)
    if inner == outer or inner.startswith(f"{outer}/") or outer.startswith(f"{inner}/"):
        message = "the output is the dataset's folder, or one is inside the other; choose another output"
        raise InvalidConfig(message, uri=redact(out))


@dataclass(frozen=True, slots=True)
class _Memory:
    """What a process may take, divided. workers: that share it. reading_nbytes: of each, for what it reads and packs.
    recycled_nbytes: of each beside that. storage: how they write."""

    workers: int
    reading_nbytes: int
    recycled_nbytes: int
    storage: Storage

    @classmethod
    def of(cls, nbytes: int, workers: int, out: str, storage: Storage) -> _Memory:
        """nbytes: of the workers together."""
        share = nbytes // workers
        storage, writer_nbytes = _writing(out, storage, share)
        recycled_nbytes = share // _RECYCLED_SHARE
        return cls(workers, share - writer_nbytes - recycled_nbytes, recycled_nbytes, storage)


def _divided(
    model: Model, files: tuple[OutputFile, ...], nbytes: int, sharing: int, out: str, storage: Storage
) -> tuple[_Memory, tuple[OutputFile, ...]]:
    """The memory of as many of `sharing` workers as there is room for, and the files with the steps that fit.

    MemoryBudgetExceeded where one worker has too little for some rows of a layer, such as a compressed row block, which
    is decompressed as a whole: it names the layers, and the budget that is enough.
    """
    fixed_nbytes = _fixed_nbytes(model.dataset.uri, out)
    most = max(1, min(sharing, (nbytes - fixed_nbytes) // _LEAST_WORKER_NBYTES))
    too_large: dict[str, int] = {}
    for workers in range(most, 0, -1):
        memory = _Memory.of(nbytes - fixed_nbytes, workers, out, storage)
        cutter = StepCutter(model.dataset, memory.reading_nbytes)
        made = cutter.cut(files)
        too_large = cutter.too_large(made)
        if not too_large:
            return memory, made
    needed = max(too_large.values())
    budgets = range(-(-nbytes // _MIB) * _MIB, 8 * (needed + nbytes + _DIRECT_NBYTES), _MIB)
    enough = next(
        b for b in budgets if _Memory.of(b - fixed_nbytes, 1, out, storage).reading_nbytes >= needed
    )
    message = (
        f"{listed(too_large)}: their rows take up to {rounded_size(needed)} at once, more than a worker gets of "
        f"{rounded_size(nbytes)} in all; raise --memory-budget to {enough // _MIB}MiB"
    )
    raise MemoryBudgetExceeded(message, uri=model.dataset.uri)


def _fixed_nbytes(*places: str) -> int:
    """Of the budget, what a process takes that is not a worker's."""
    return _PROCESS_NBYTES + (0 if all(map(is_local, places)) else _CLIENT_NBYTES)


def _writing(out: str, storage: Storage, budget_nbytes: int) -> tuple[Storage, int]:
    """How a worker with so much memory writes, and what of it that takes. The bytes are the same either way."""
    share = budget_nbytes // _WRITER_SHARE
    if is_local(out):
        return (
            (storage, _DIRECT_NBYTES)
            if share >= _DIRECT_NBYTES
            else (replace(storage, direct_writes="never"), 0)
        )
    upload = max(_LEAST_UPLOAD_NBYTES, min(storage.transfer.upload_bytes, share // _PARTS_HELD))
    most = max(_MOST_PARTS_HELD, storage.transfer.parts_in_flight + 1)
    held = max(_PARTS_HELD, min(most, share // upload))
    transfer = replace(storage.transfer, upload_bytes=upload, parts_in_flight=held - 1)
    return replace(storage, transfer=transfer), held * upload
