"""Checks that a dataset is complete and as it was written: every object, every row, and that they agree."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from arrowquant_dist.config import DEFAULT_STORAGE, Storage, check_storage
from arrowquant_dist.dataset.bare import BareFile, OpenRowGroup
from arrowquant_dist.dataset.bare_folder import bare_paths
from arrowquant_dist.dataset.dataset import Dataset, alias_errors
from arrowquant_dist.dataset.layers import BlockProblems, StoredBlock, group_layers
from arrowquant_dist.errors import ArrowQuantError, CorruptWeights, IncompleteDataset, NotFound, counted
from arrowquant_dist.export_names import RECORD_PATH
from arrowquant_dist.format.schema import SCHEMA_VERSION
from arrowquant_dist.location import Location, location
from arrowquant_dist.plan import plan_from_table
from arrowquant_dist.progress.callers import told_to
from arrowquant_dist.progress.runs import shown_bytes
from arrowquant_dist.storage.base import Store
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.target.exports import UNFINISHED, listed_files, marked
from arrowquant_dist.target.intact import hash_of_object
from arrowquant_dist.target.layout import PLAN_PATH, WEIGHTS_FOLDER
from arrowquant_dist.target.manifest import MANIFEST_PATH, Manifest, ManifestPart, ManifestTotals, StoredFile
from arrowquant_dist.target.plan_file import read_plan_file
from arrowquant_dist.target.target import Target

WORKERS = 4
STRAY = "stray-object"
_SAID_TWICE = ("fingerprint", "source", "config", "aliases", "compression")  # in the plan and the manifest

OnBytes = Callable[[int, int], None]  # (bytes done, bytes in all); called from several threads


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. kind: kind of the error that reading would raise, or `stray-object`."""

    kind: str
    message: str
    layer: str | None = None
    uri: str | None = None
    byte_range: tuple[int, int] | None = None

    def __str__(self) -> str:
        return str(ArrowQuantError(self.message, layer=self.layer, uri=self.uri, byte_range=self.byte_range))


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was checked, and what is wrong with it. objects, nbytes: number and size of the files with weights."""

    uri: str
    problems: tuple[Problem, ...]
    objects: int
    layers: int
    rows: int
    nbytes: int

    @property
    def is_sound(self) -> bool:
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        problems = [{**one, "layer_name": one.pop("layer")} for one in values["problems"]]
        return {"is_sound": self.is_sound, **values, "problems": problems}


def verify(
    uri: Location, storage: Storage = DEFAULT_STORAGE, *, progress: OnBytes | bool | None = True
) -> VerifyReport:
    """Reads every byte of a dataset, three times where it is a target, and lists what is wrong.

    A target: the manifest is compared with index, parts and plan; size and hash of every object are checked, and each
    row's checksums, by its byte ranges and again as Parquet reads it; every layer must be covered once, and nothing
    else may lie among the parts. An export as V1: its rows, and each file against its record. Bare files: their rows;
    for a folder of them it is noted that nothing says whether it is complete. Memory: a few times the largest block for
    each of 4 threads.

    uri: path or URL of the dataset.
    storage: how it is reached.
    progress: True shows progress in a terminal or a notebook, and only there; False shows none; a function is called
        with the bytes done and the bytes in all, from several threads.

    Raises NotFound where there is no dataset.
    """
    check_storage(storage)
    store = open_store(location(uri, "uri"), storage)
    with told_to(progress, shown_bytes, "verify") as told:
        return _verify(store, _Findings(store, told))


def _verify(store: Store, findings: _Findings) -> VerifyReport:
    if store.has_file(MANIFEST_PATH):
        _check_target(store, findings)
    else:
        _check_bare(store, findings)
    return findings.report()


class _Findings:
    """What was checked so far, and the problems found. Thread-safe."""

    def __init__(self, store: Store, on_progress: OnBytes | None) -> None:
        self.uri = store.uri
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._problems: list[Problem] = []
        self._counts = {"objects": 0, "layers": 0, "rows": 0, "nbytes": 0}
        self._done = self._todo = 0

    def note(self, error: ArrowQuantError, kind: str | None = None) -> None:
        problem = Problem(kind or error.kind, error.message, error.layer, error.uri, error.byte_range)
        with self._lock:
            self._problems.append(problem)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Notes an error raised inside as a problem; it ends this `with` block alone."""
        try:
            yield
        except ArrowQuantError as error:
            self.note(error)

    def expect(self, nbytes: int) -> None:
        self._todo += nbytes

    def advance(self, nbytes: int) -> None:
        with self._lock:
            self._done = min(self._done + nbytes, self._todo)
            done = self._done
        if self._on_progress is not None:
            self._on_progress(done, self._todo)

    def count(self, **counts: int) -> None:
        with self._lock:
            for name, number in counts.items():
                self._counts[name] += number

    def report(self) -> VerifyReport:
        problems = sorted(self._problems, key=lambda p: (p.uri or "", p.layer or "", p.byte_range or (0, 0)))
        return VerifyReport(self.uri, tuple(problems), **self._counts)


def _check_bare(store: Store, findings: _Findings) -> None:
    try:
        paths = bare_paths(store)
    except IncompleteDataset as error:
        findings.note(error)
        return
    files = _open_files(store, paths, findings)
    recorded: Sequence[StoredFile] = ()
    if paths != [""]:
        with findings.noting():
            recorded = _recorded(store, paths, findings)
    blocks = _check_layers([block for file in files.values() for block in file.blocks], store, findings)
    findings.expect(sum(block.stored_nbytes for block in blocks) + sum(file.nbytes for file in recorded))
    for file in recorded:
        with findings.noting():
            _check_object(store, file, findings, _EXPORT)
    dataset = Dataset(store, {}, SCHEMA_VERSION, files=files)
    for block in blocks:
        with findings.noting():
            dataset.read_block(block)
        findings.count(rows=1)
        findings.advance(block.stored_nbytes)


def _open_files(store: Store, paths: Sequence[str], findings: _Findings) -> dict[str, BareFile]:
    """The files that can be read. Raises NotFound where all of them are tables of something else."""
    kept = OpenRowGroup()
    files, others = {}, []
    for path in paths:
        try:
            files[path] = BareFile(store, path, kept)
            findings.count(objects=1, nbytes=store.size(path))
        except NotFound as error:
            others.append(error)
        except ArrowQuantError as error:
            findings.note(error)
    if others and len(others) == len(paths):
        raise others[0]
    for other in others:
        findings.note(other)
    return files


def _recorded(store: Store, paths: Sequence[str], findings: _Findings) -> Sequence[StoredFile]:
    """All files that the record of an export as V1 lists. For other folders nothing says whether all files are there,
    which is noted, as is each file that the record does not list."""
    recorded = listed_files(store)
    if recorded is None:
        begun = f"without {MANIFEST_PATH} it may be incomplete; run the same command again"
        is_export = marked(store, paths[:1]) is not None
        findings.note(IncompleteDataset(UNFINISHED if is_export else begun, uri=store.uri))
        return ()
    for path in sorted(set(paths) - {file.path for file in recorded}):
        message = f"{RECORD_PATH} does not list it, but what reads the folder would find it; remove it"
        findings.note(ArrowQuantError(message, uri=store.url(path)), STRAY)
    return recorded


def _check_target(store: Store, findings: _Findings) -> None:
    with findings.noting():
        manifest = Manifest.read(store)
        _check_run(store, manifest, findings)
        with findings.noting():
            _check_strays(store, manifest, findings)
        blocks = _check_index(store, manifest, findings)
        nbytes = sum(part.nbytes for part in manifest.parts)
        others = (*manifest.sidecars, *manifest.report)
        nbytes += sum(file.nbytes for file in others)
        findings.expect(nbytes + 2 * sum(block.stored_nbytes for block in blocks))
        for file in others:
            with findings.noting():
                _check_object(store, file, findings)
        with ThreadPoolExecutor(WORKERS) as pool:
            check = partial(_check_part, store, findings)
            of_parts = by_part(blocks)
            list(pool.map(check, manifest.parts, (of_parts.get(part.path, []) for part in manifest.parts)))


def by_part(blocks: Iterable[StoredBlock]) -> dict[str, list[StoredBlock]]:
    """{path: its blocks}, in one pass: a large dataset has thousands of parts and hundreds of thousands of blocks."""
    of_parts: defaultdict[str, list[StoredBlock]] = defaultdict(list)
    for block in blocks:
        of_parts[block.path].append(block)
    return of_parts


def _check_layers(blocks: Sequence[StoredBlock], store: Store, findings: _Findings) -> list[StoredBlock]:
    """Notes problems of the layers; returns the blocks that can be read."""
    layers, errors = group_layers(blocks, store.url)
    for error in errors:
        findings.note(error)
    findings.count(layers=len(layers))
    problems = BlockProblems()
    return [block for block in blocks if problems.of(block) is None]


def _check_index(store: Store, manifest: Manifest, findings: _Findings) -> list[StoredBlock]:
    """Compares the index with the manifest and the plan; returns the blocks that can be read."""
    try:
        entries = manifest.read_index(store)
    except NotFound:
        message = "the index that the manifest names is not here; fetch it again, or quantize with --repair"
        findings.note(IncompleteDataset(message, uri=store.url(manifest.index.path)))
        return []
    except ArrowQuantError as error:
        findings.note(error)
        return []
    blocks = [StoredBlock.from_record(entry.part, entry.record) for entry in entries]
    uri = store.url(MANIFEST_PATH)
    for wrong in alias_errors(manifest, {block.header.layer_name for block in blocks}, uri):
        findings.note(wrong)
    nbytes = sum(part.nbytes for part in manifest.parts)
    said = asdict(manifest.totals)
    for name, number in asdict(ManifestTotals.of_rows([entry.record for entry in entries], nbytes)).items():
        if said[name] != number:
            message = f"`totals.{name}` of the manifest is {said[name]}, but its rows have {number}"
            findings.note(CorruptWeights(f"{message}; fetch it again, or quantize with --repair", uri=uri))
    with findings.noting():
        if store.has_file(PLAN_PATH):
            _check_plan(store, manifest, blocks, findings)
    return _check_layers(blocks, store, findings)


def _check_plan(store: Store, manifest: Manifest, blocks: Sequence[StoredBlock], findings: _Findings) -> None:
    """Checks that the dataset is what was planned: every row block once, from the same source by the same config."""
    uri = store.url(PLAN_PATH)
    plan = plan_from_table(read_plan_file(store.read(PLAN_PATH), uri))
    planned = {
        (block.layer.name, block.row_start, block.shape, block.layer.shape, block.layer.dtype)
        for block in plan.blocks
    }
    rows = (block.header for block in blocks)
    stored = {(row.layer_name, row.row_start, row.shape, row.layer_shape, row.dtype) for row in rows}
    for name, start, shape, *_ in sorted(planned - stored):
        message = f"the block {list(shape)} from row {start} on was planned and is not in the index"
        findings.note(IncompleteDataset(f"{message}; quantize again", layer=name, uri=uri))
    for name, start, shape, *_ in sorted(stored - planned):
        message = f"the block {list(shape)} from row {start} on was never planned; quantize again"
        findings.note(CorruptWeights(message, layer=name, uri=uri))
    for name in _SAID_TWICE:
        if getattr(plan, name) != getattr(manifest, name):
            message = f"`{name}` of the manifest is not that of {PLAN_PATH}; fetch both again"
            findings.note(CorruptWeights(message, uri=store.url(MANIFEST_PATH)))


def _check_run(store: Store, manifest: Manifest, findings: _Findings) -> None:
    """Checks that the manifest is of the run whose plan is here; if it is of an earlier one, most of its objects are
    gone."""
    try:
        planned = Target(store).planned()
    except CorruptWeights:  # `_check_plan` reports it
        return
    if planned is not None and not manifest.is_of(planned.identity):
        message = "the run whose plan is here has not finished, and the manifest is from an earlier one"
        uri = store.url(MANIFEST_PATH)
        findings.note(IncompleteDataset(f"{message}; run its quantize command again", uri=uri))


def _check_strays(store: Store, manifest: Manifest, findings: _Findings) -> None:
    known = {part.path for part in manifest.parts}
    for info in store.list(WEIGHTS_FOLDER):
        if info.path not in known:
            message = "the manifest does not list it, but what reads the folder would find it; remove it"
            findings.note(ArrowQuantError(message, uri=store.url(info.path)), STRAY)


@dataclass(frozen=True, slots=True)
class _Lister:
    """A file that records size and hash of objects. advice: what to do where an object differs."""

    name: str
    advice: str


_MANIFEST = _Lister("the manifest", "fetch it again, or quantize with --repair")
_EXPORT = _Lister(RECORD_PATH, "fetch it again, or export again")


def _check_object(
    store: Store, file: StoredFile | ManifestPart, findings: _Findings, lister: _Lister = _MANIFEST
) -> None:
    """Checks size and hash of a whole object. Raises CorruptWeights, IncompleteDataset."""
    uri = store.url(file.path)
    try:
        nbytes = store.size(file.path)
    except NotFound as error:
        message = f"{lister.name} lists it, but it is not here; {lister.advice}"
        raise IncompleteDataset(message, uri=uri) from error
    if nbytes != file.nbytes:
        found = f"it has {counted(nbytes, 'byte')}, but {lister.name} says {file.nbytes}"
        raise CorruptWeights(f"{found}; {lister.advice}", uri=uri)
    if hash_of_object(store, file.path, nbytes, findings.advance) != file.hash:
        raise CorruptWeights(f"its hash is not that of {lister.name}; {lister.advice}", uri=uri)


def _check_part(store: Store, findings: _Findings, part: ManifestPart, blocks: Sequence[StoredBlock]) -> None:
    findings.count(objects=1, rows=len(blocks), nbytes=part.nbytes)
    try:
        _check_object(store, part, findings)
    except IncompleteDataset as error:
        for block in blocks:
            findings.note(IncompleteDataset(error.message, layer=block.header.layer_name, uri=error.uri))
        if not blocks:
            findings.note(error)
        return
    except ArrowQuantError as error:  # the checks of its rows say what is wrong
        findings.note(error)
    indexed = Dataset(store, {}, SCHEMA_VERSION)
    sound = []
    for block in blocks:
        with findings.noting():
            indexed.read_block(block)
            sound.append(block)
        findings.advance(block.stored_nbytes)
    with findings.noting():
        file = BareFile(store, part.path, OpenRowGroup())
        _check_parquet(store, file, blocks, sound, findings)


def _check_parquet(
    store: Store,
    file: BareFile,
    blocks: Sequence[StoredBlock],
    sound: Sequence[StoredBlock],
    findings: _Findings,
) -> None:
    """Checks the part as other programs read it: its rows are those of the index, with the values that this points to.

    sound: blocks whose values by range match the row's checksum. Values read by Parquet have to match it too, so both
    are the same.
    """
    dataset = Dataset(store, {}, SCHEMA_VERSION, files={block.path: file for block in blocks})
    said = {(block.row_group, block.row_in_group): replace(block, ranges=None) for block in blocks}
    for row in file.blocks:
        expected = said.pop((row.row_group, row.row_in_group), None)
        if row != expected:
            message = "the index and the Parquet file disagree about this row; quantize again"
            findings.note(CorruptWeights(message, layer=row.header.layer_name, uri=store.url(row.path)))
    for block in said.values():
        message = "the index has this row, but the Parquet file does not; fetch it again"
        findings.note(CorruptWeights(message, layer=block.header.layer_name, uri=store.url(block.path)))
    readable = set(file.blocks)
    for block in sound:
        row = replace(block, ranges=None)
        if row in readable:
            with findings.noting():
                dataset.read_block(row)
        findings.advance(block.stored_nbytes)
