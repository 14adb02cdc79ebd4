"""A worker of a calibration, which sends one slice of the texts through one part of the model."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from arrowquant_dist.calibration.arrays import ArrayDraft, ArrayFile, read_all, write_arrays
from arrowquant_dist.calibration.layout import (
    AHEAD_FOLDER,
    STATES_FOLDER,
    TOKENS_PATH,
    states_path,
    sums_path,
)
from arrowquant_dist.code_digest import calibration_digest
from arrowquant_dist.config import Storage
from arrowquant_dist.errors import RESUMES, Interrupted
from arrowquant_dist.storage.base import Store
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.worker.job import OnBlock, OnCompile, ShouldStop

if TYPE_CHECKING:
    from arrowquant_dist.models.paths import Hidden, HiddenBatch, Paths
    from arrowquant_dist.models.sites import Order
    from arrowquant_dist.models.units import Unit

# Stand for a stage's number: all sums and the outputs; the outputs alone; as the first, but of the original before
# anything is quantized, with outputs in a folder of their own.
ALL_STAGES, OUTPUTS, AHEAD = -1, -2, -3


@dataclass(frozen=True, slots=True)
class SliceBlock:
    """The only block of a job. layer_name: text for people."""

    layer_name: str
    source_nbytes: int
    is_first: bool = True


@dataclass(frozen=True, slots=True)
class SliceJob:
    """One slice of the texts through one part of the model.

    index: of the job. number: of the slice. stage: a stage of the part, or one of the three above. wanted: the sums to
    make. makes_states: whether the inputs of the next part are written, too. quantized: paths of the quantized values
    that the quantized path has by then. tokens: number of tokens in the slice."""

    index: int
    number: int
    part: int
    stage: int
    wanted: tuple[Unit, ...]
    makes_states: bool
    quantized: tuple[str, ...]
    tokens: int
    noun: str = "slice"

    @property
    def label(self) -> str:
        return str(self.number)

    @property
    def makes_states_alone(self) -> bool:
        """Whether the job writes the inputs of the next part, and no sums."""
        return self.stage == OUTPUTS or (self.stage == AHEAD and self.makes_states)

    @property
    def written(self) -> str:
        """The path that is written last, so that its presence means that the job is done."""
        if self.makes_states_alone:
            return states_path(self.part + 1, self.number, states_folder(self.stage))
        named = repr([(unit.slot, unit.first, unit.last, unit.part) for unit in self.wanted])
        return sums_path(self.part, self.stage, xxhash.xxh3_64_hexdigest(named.encode()), self.number)

    @property
    def blocks(self) -> Sequence[SliceBlock]:
        return (SliceBlock(f"part {self.part}", self.source_nbytes),)

    @property
    def source_nbytes(self) -> int:
        return self.tokens


@dataclass(frozen=True, slots=True)
class SliceDone:
    """See worker.job.Done."""

    worker: str
    wall_seconds: float
    written_nbytes: int = 0
    read_nbytes: int = 0
    retries: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    notice: Any = None


@dataclass(frozen=True, slots=True)
class CalibrationContext:
    """What every worker needs to know. identity: name of the run, by which a process keeps its model open."""

    identity: str
    model: str
    out: str
    model_storage: Storage
    out_storage: Storage
    memory_nbytes: int
    unscaled: tuple[str, ...]
    is_sequential: bool

    def open_worker(self, node: str | None, on_compile: OnCompile) -> SliceWorker:  # noqa: ARG002 - compiles nothing
        return SliceWorker(self, node)

    def code(self) -> str:
        return calibration_digest()


class OpenPaths:
    """The models that are open in this process; its workers share them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[str, Paths] = {}
        self._stack = ExitStack()

    def set(self, context: CalibrationContext, paths: Paths) -> None:
        with self._lock:
            self._found[context.identity] = paths

    def drop(self, context: CalibrationContext) -> None:
        with self._lock:
            self._found.pop(context.identity, None)

    def get(self, context: CalibrationContext) -> Paths:
        """The model of a run; opened here in processes other than the one that began the run."""
        with self._lock:
            if context.identity not in self._found:
                self._found[context.identity] = self._open(context)
            return self._found[context.identity]

    def _open(self, context: CalibrationContext) -> Paths:
        import torch

        from arrowquant_dist.models.pair import opened_model
        from arrowquant_dist.models.paths import Paths
        from arrowquant_dist.models.subject import Subject

        torch.set_num_threads(1)
        opened = self._stack.enter_context(
            opened_model(context.model, context.model_storage, context.memory_nbytes, context.unscaled)
        )
        texts = read_tokens(open_store(context.out, context.out_storage))
        return Paths(Subject.of(opened), texts, is_sequential=context.is_sequential)


OPEN_PATHS = OpenPaths()


class SliceWorker:
    """Works on slices, one at a time; the workers of a process share its weights."""

    def __init__(self, context: CalibrationContext, node: str | None) -> None:
        self.name = f"{node or socket.gethostname()}/{os.getpid()}"
        self._context = context
        self._store = open_store(context.out, context.out_storage)

    def run(self, job: SliceJob, on_block: OnBlock, should_stop: ShouldStop) -> SliceDone:
        """Writes the job's sums and the inputs of the next part. Raises Interrupted."""
        began = time.perf_counter()
        if should_stop():
            raise Interrupted(RESUMES)
        paths = OPEN_PATHS.get(self._context)
        paths.enter(job.part)
        for path in job.quantized:
            if not paths.has_put(path):
                put_quantized(paths, self._store, path)
        written = self._do(paths, job)
        on_block(job.blocks[0])
        return SliceDone(self.name, time.perf_counter() - began, written)

    def committed(self, job: SliceJob) -> SliceDone | None:
        """The job's receipt if what it writes last is there, else None."""
        return SliceDone(self.name, 0.0) if self._store.exists(job.written) else None

    def _do(self, paths: Paths, job: SliceJob) -> int:
        batches = states_of(paths, self._store, job.part, job.number, job.stage)
        if job.stage == OUTPUTS:
            return self._write_states(job, [*paths.through(job.part, batches)], paths)
        order = order_of(paths, self._store, job.part, job.stage)
        if job.stage in (ALL_STAGES, AHEAD):
            sums, made = paths.one_path(job.part, order, batches, job.wanted, keeps=job.makes_states)
            written = self._write_states(job, made, paths) if job.makes_states else 0
            if job.makes_states_alone:
                return written
        else:
            sums, written = paths.stage(job.part, order, job.stage, batches, job.wanted), 0
        drafts = [ArrayDraft.of(key, values) for key, values in sums.finished().items()]
        return written + write_arrays(self._store, job.written, drafts)

    def _write_states(self, job: SliceJob, made: Sequence[Hidden], paths: Paths) -> int:
        drafts = [
            ArrayDraft.of(f"{batch}.{path}", hidden.numpy())
            for batch, found in zip(paths.slices[job.number], made, strict=True)
            for path, hidden in enumerate(found)
            if hidden is not None
        ]
        path = states_path(job.part + 1, job.number, states_folder(job.stage))
        return write_arrays(self._store, path, drafts)


def states_folder(stage: int) -> str:
    return AHEAD_FOLDER if stage == AHEAD else STATES_FOLDER


def states_of(paths: Paths, store: Store, part: int, number: int, stage: int) -> Iterator[HiddenBatch]:
    """The inputs of a part, batch by batch."""
    import torch

    from arrowquant_dist.models.paths import HiddenBatch

    file = ArrayFile(store, states_path(part, number, states_folder(stage))) if part else None
    ways = 2 if paths.is_sequential and stage != AHEAD else 1
    for batch in paths.slices[number]:
        hidden = (
            tuple(torch.from_numpy(file.read(f"{batch}.{way}")) for way in range(ways))
            if file is not None
            else (None,) * ways
        )
        yield HiddenBatch(paths.batches[batch], hidden)


def order_of(paths: Paths, store: Store, part: int, stage: int) -> Order:
    """Paths.order, which needs the inputs of the last batch."""
    import torch

    if not part:
        return paths.order(part, None)
    file = ArrayFile(store, states_path(part, len(paths.slices) - 1, states_folder(stage)))
    return paths.order(part, torch.from_numpy(file.read(f"{len(paths.batches) - 1}.0")))


def put_quantized(paths: Paths, store: Store, path: str) -> None:
    """Gives the layers of an object under run/quantized/ its values."""
    found = read_all(store, path)
    paths.put_bytes(path, found)


def write_tokens(store: Store, texts: Any) -> None:
    """Writes the tokens for all workers, whose versions of tokenizers may differ. texts: TokenizedTexts."""
    rows = {"ids": texts.ids} | ({"types": texts.types} if texts.types is not None else {})
    drafts = [
        ArrayDraft.of("lengths", np.array(texts.lengths, np.int32)),
        ArrayDraft.of("pad", np.array([texts.pad], np.int32)),
    ]
    for name, found in rows.items():
        flat = (
            np.concatenate([np.asarray(row, np.int32) for row in found]) if found else np.empty(0, np.int32)
        )
        drafts.append(ArrayDraft.of(name, flat))
    write_arrays(store, TOKENS_PATH, drafts)


def read_tokens(store: Store) -> Any:
    from arrowquant_dist.models.tokens import TokenizedTexts

    found = read_all(store, TOKENS_PATH)
    edges = np.cumsum(found["lengths"])[:-1]

    def rows(name: str) -> tuple[Sequence[int], ...]:
        return tuple(part.tolist() for part in np.split(found[name], edges))

    return TokenizedTexts(rows("ids"), rows("types") if "types" in found else None, 0, int(found["pad"][0]))
