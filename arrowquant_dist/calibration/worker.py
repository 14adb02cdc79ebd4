"""A worker of a calibration: one slice of the texts goes through one part of the model."""

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

# In the place of a stage's number: sums of all and outputs; outputs alone; as the first of these, of the original
# before anything is quantized, with states of their own.
ALL_STAGES, OUTPUTS, AHEAD = -1, -2, -3


@dataclass(frozen=True, slots=True)
class SliceBlock:
    """A job's only block. layer_name: for people."""

    layer_name: str
    source_nbytes: int
    is_first: bool = True


@dataclass(frozen=True, slots=True)
class SliceJob:
    """One slice through one part.

    index: of the job. number: of the slice. stage: of the part's, or one of the two above. wanted: what is summed up.
    makes_states: whether what goes into the next part is written, too. quantized: paths of the values that the
    quantized path has by then. tokens: of the slice."""

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
        """What goes into the next part, and no sums."""
        return self.stage == OUTPUTS or (self.stage == AHEAD and self.makes_states)

    @property
    def written(self) -> str:
        """What is written last, and so says that the job is done."""
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
    """What every worker needs to know. identity: of the run, and so of what a process keeps open for it."""

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
    """The models of this process, which its workers share."""

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
        """Opened for this process where it is none that the run itself began in."""
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
    """Does slices, one at a time; several share the weights of a process."""

    def __init__(self, context: CalibrationContext, node: str | None) -> None:
        self.name = f"{node or socket.gethostname()}/{os.getpid()}"
        self._context = context
        self._store = open_store(context.out, context.out_storage)

    def run(self, job: SliceJob, on_block: OnBlock, should_stop: ShouldStop) -> SliceDone:
        """Sums, and what goes into the next part, are there when it returns. Interrupted."""
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
        """The last thing that it writes says so."""
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
    """What goes into a part, batch by batch."""
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
    """See Paths.order, for which the last batch is read."""
    import torch

    if not part:
        return paths.order(part, None)
    file = ArrayFile(store, states_path(part, len(paths.slices) - 1, states_folder(stage)))
    return paths.order(part, torch.from_numpy(file.read(f"{len(paths.batches) - 1}.0")))


def put_quantized(paths: Paths, store: Store, path: str) -> None:
    """The layers of an object under run/quantized/ get its values."""
    found = read_all(store, path)
    paths.put_bytes(path, found)


def write_tokens(store: Store, texts: Any) -> None:
    """texts: TokenizedTexts, so that every worker has the same, whatever its versions of tokenizers."""
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
