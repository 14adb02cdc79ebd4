"""The worker of an export: writes files, one at a time, each front to back, whole or not at all.

A file that has its planned size and the export's mark is complete, no matter who wrote it: equal exports write equal
bytes. So two attempts at one file, or two drivers, do no harm: the later one drops its own.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from arrowquant_dist.arena import Recycled
from arrowquant_dist.checkpoint.reader import SourceReader
from arrowquant_dist.checkpoint.table import Layer, SourceFile
from arrowquant_dist.code_digest import export_digest
from arrowquant_dist.config import DEFAULT_STORAGE, Storage
from arrowquant_dist.dataset.dataset import Dataset
from arrowquant_dist.dataset.prefetch import Budget, Stream
from arrowquant_dist.errors import RESUMES, IncompleteDataset, Interrupted, NotFound, TargetConflict, counted
from arrowquant_dist.export.files import OutputFile, Step
from arrowquant_dist.export.mark import OTHER_VERSION, is_of_other_code, mark_of
from arrowquant_dist.export.reading import Packed, Room, StepReader, TensorParts, as_tensor_parts
from arrowquant_dist.export.record import ExportRecord
from arrowquant_dist.export.steps import RUN_NBYTES
from arrowquant_dist.export_names import RECORD_PATH
from arrowquant_dist.machine import give_back_large_memory, usable_cpus
from arrowquant_dist.storage.base import ByteRange, ObjectInfo, ObjectWriter, Store
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.traffic import Transferred
from arrowquant_dist.storage.uris import is_local
from arrowquant_dist.target.intact import hash_of_object
from arrowquant_dist.target.manifest import StoredFile
from arrowquant_dist.worker.clock import Clock
from arrowquant_dist.worker.job import OnBlock, OnCompile, ShouldStop

if TYPE_CHECKING:
    from arrowquant_dist.worker.kernels import Kernels

_REMOTE_READERS = 8
_AHEAD_NBYTES = 192 << 20  # enough for these readers; reading further ahead would use memory in vain
_LOCAL_READERS = 2  # of a worker that has the machine to itself
# Limit for local parts: reading as far ahead as over a network takes more than may be kept for reuse (see
# ExportContext), and new memory instead took 25,000 page faults in an export of 2 GB.
_LOCAL_AHEAD_NBYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class RequantizeSource:
    """The checkpoint that layers are quantized anew from, if it is not the dataset. files: its files. layers: the
    layers to quantize anew, by the dataset's names."""

    files: tuple[SourceFile, ...]
    layers: dict[str, Layer]


@dataclass(frozen=True, slots=True)
class ExportContext:
    """What every worker of an export needs to know. Options may hold secrets, so they are not shown.

    dataset, out: locations. files: the dataset's, as they were when the export was planned. budget_nbytes: memory of a
    worker for what it reads and packs. recycled_nbytes: additional memory that it keeps to reuse. workers: number of
    workers of a process. dataset_storage, out_storage, source_storage: options of the storages. source: what layers are
    quantized anew from, if it is not the dataset.
    """

    dataset: str
    out: str
    files: tuple[SourceFile, ...]
    budget_nbytes: int
    recycled_nbytes: int = 0
    workers: int = 1
    dataset_storage: Storage = DEFAULT_STORAGE
    out_storage: Storage = DEFAULT_STORAGE
    source: RequantizeSource | None = None
    source_storage: Storage = DEFAULT_STORAGE

    def open_worker(self, node: str | None, on_compile: OnCompile) -> ExportWorker:
        return ExportWorker(self, node, on_compile)

    def code(self) -> str:
        return export_digest()


@dataclass(frozen=True, slots=True)
class FileReceipt:
    """A file that is there (worker/job.py::Done). worker: "" if the file was found."""

    notice: StoredFile
    worker: str
    seconds: dict[str, float]
    wall_seconds: float
    read_nbytes: int = 0
    written_nbytes: int = 0
    retries: int = 0


class ExportWorker:
    """Not thread-safe: one worker per thread. Takes the context's budget, and what a store holds of what it writes."""

    def __init__(self, context: ExportContext, node: str | None, on_compile: OnCompile) -> None:
        del node
        give_back_large_memory()
        self.name = f"{socket.gethostname()}/{os.getpid()}"
        self._reader = SourceReader(context.dataset_storage, context.files)
        self._reader.check_manifest(context.dataset)
        self._context, self._on_compile = context, on_compile
        self._kernels: Kernels | None = None
        self._memory = Recycled(context.recycled_nbytes)
        self._store = open_store(context.out, context.out_storage)
        self._readers = (
            _local_readers(context.workers)
            if is_local(context.dataset)
            else _remote_readers(context.budget_nbytes)
        )
        source = context.source
        self._source = SourceReader(context.source_storage, source.files) if source is not None else None

    def run(self, file: OutputFile, on_block: OnBlock, should_stop: ShouldStop) -> FileReceipt:
        """See worker.job.Worker. Raises TargetConflict if something else has the file's name."""
        found = self.committed(file)
        if found is not None:
            for step in file.steps:
                on_block(step)
            return found
        clock, before = Clock(), self._transferred()
        dataset = self._dataset(file)
        self._prepare(dataset, file, clock)
        writer = _HashedFile(self._store.open_new(file.path), file)
        try:
            writer.begin()
            with closing(self._packed(dataset, file, writer.room)) as results:
                for step in file.steps:
                    if should_stop():
                        raise Interrupted(RESUMES)
                    with clock.phase("read"):
                        parts = next(results)
                    while True:
                        with clock.phase("read"):
                            part = next(parts, None)
                        if part is None:  # its memory is free once the next step asks for room
                            break
                        with clock.phase("write"):
                            writer.add(step, *part)
                    on_block(step)
            self._confirm()
            with clock.phase("write"):
                stored = writer.close()
        finally:
            writer.abort()  # does nothing after `close`
        if stored is None:
            found = self.committed(file)
            if found is None:
                message = "it was there a moment ago and is gone; run the same command again"
                raise IncompleteDataset(message, uri=self._store.url(file.path))
            return found
        self._give_way(file)
        spent = self._transferred() - before
        return FileReceipt(
            stored,
            self.name,
            dict(clock.seconds),
            clock.wall_seconds,
            spent.read_nbytes,
            spent.written_nbytes,
            spent.retries,
        )

    def committed(self, file: OutputFile) -> FileReceipt | None:
        """Returns the existing file, hashed as it is; None if there is none. Raises TargetConflict for any other
        file."""
        clock = Clock()
        try:
            info = self._store.info(file.path)
        except NotFound:
            return None
        refuse_other_file(self._store, info, file)
        with clock.phase("read"):
            digest = hash_of_object(self._store, info.path, info.nbytes)
        stored = StoredFile(file.path, info.nbytes, digest)
        return FileReceipt(stored, "", dict(clock.seconds), clock.wall_seconds)

    def _give_way(self, file: OutputFile) -> None:
        """Removes the file again and raises TargetConflict if another export was finished here while this worker slept:
        readers of that export might take the file for one of its own."""
        try:
            data = self._store.read(RECORD_PATH)
        except NotFound:
            return
        mark = ExportRecord.from_bytes(data, self._store.url(RECORD_PATH)).mark.encode()
        if mark in file.literals[0] or mark in file.literals[-1]:
            return
        info = self._store.info(file.path)
        refuse_other_file(self._store, info, file)
        self._store.delete_unchanged({info.path: info.version})
        message = (
            "another export was finished here in the meantime; choose another folder, or use --overwrite"
        )
        raise TargetConflict(message, uri=self._store.uri)

    def _dataset(self, file: OutputFile) -> Dataset:
        """Opens the dataset with at least the layers that the file is made from."""
        if file.stored:
            return self._reader.known_dataset(self._context.dataset, file.stored, self._memory.take)
        return self._reader.dataset(self._context.dataset)

    def _prepare(self, dataset: Dataset, file: OutputFile, clock: Clock) -> None:
        """Prepares the kernels that quantize layers anew. Most exports have no such layers and do without Numba, whose
        import takes a fifth of a second."""
        anew = [layer for layer in file.layers if layer.spec is not None]
        if not anew:
            return
        from arrowquant_dist.worker.kernels import Kernels

        if self._kernels is None:
            self._kernels = Kernels(self._reader, self._on_compile)
        specs = ((dataset.layers[layer.layer].dtype, layer.spec) for layer in anew)
        self._kernels.prepare_specs(
            ((dtype, replace(spec, row_dims=1)) for dtype, spec in specs if spec is not None), clock
        )

    def _packed(self, dataset: Dataset, file: OutputFile, room: Room) -> Generator[TensorParts]:
        budget_nbytes = self._context.budget_nbytes
        layers = self._context.source.layers if self._context.source is not None else None
        reader = StepReader(dataset, self._memory.take, self._source, layers)
        if not self._readers:
            return reader.one_by_one(file, room)
        loads = (reader.load(file, step) for step in file.steps)
        most = max((step.peak_nbytes for step in file.steps), default=0)
        wanted = max(_LOCAL_AHEAD_NBYTES, 2 * most) if dataset.store.is_near else max(_AHEAD_NBYTES, most)
        ahead = Budget(min(budget_nbytes, wanted))
        return _in_parts(file, Stream(loads, ahead, self._readers).__iter__())

    def _confirm(self) -> None:
        """Checks that nothing that was read has changed since the export was planned."""
        self._reader.confirm()
        if self._source is not None:
            self._source.confirm()

    def _transferred(self) -> Transferred:
        read = self._reader.transferred + self._store.traffic.total
        return read + self._source.transferred if self._source is not None else read


def _in_parts(file: OutputFile, packed: Generator[Packed]) -> Generator[TensorParts]:
    with closing(packed):
        for step in file.steps:
            yield as_tensor_parts(step, next(packed))


def _local_readers(workers: int) -> int:
    """Returns the number of threads that read for one of `workers` workers of a process; 0 if it reads by itself.
    Reading is work for a CPU: with more readers than CPUs, two workers with two readers each took 4.2 s of CPU for 2 GB
    of int4 instead of 3.5, and a fourth more time. No readers are needed if other workers can run while one waits for
    the disk: two workers on two CPUs took 3.7 s of CPU for 2 GB of GGUF with a reader each, and 3.25 s without."""
    readers = max(1, min(_LOCAL_READERS, usable_cpus() // workers))
    return readers if workers == 1 or readers > 1 else 0


def _remote_readers(budget_nbytes: int) -> int:
    """Returns the number of threads that read over a network, where most of them wait: one for each run of rows that a
    worker has memory for. Arrow keeps what each has decompressed for a while: with 256 MiB, eight of them took 356 MiB,
    and four 304."""
    return max(1, min(_REMOTE_READERS, budget_nbytes // RUN_NBYTES))


def refuse_other_file(store: Store, info: ObjectInfo, file: OutputFile) -> None:
    """Raises TargetConflict unless the object is this file, by its size and its first and last literal, one of which
    contains the export's mark."""
    problem = f"it has {counted(info.nbytes, 'byte')} instead of {file.nbytes}"
    if info.nbytes == file.nbytes:
        head, tail = file.literals[0], file.literals[-1]
        places = ((0, head), (file.nbytes - len(tail), tail))
        found = [
            store.read_range(info.path, ByteRange(start, start + len(text))).tobytes() == text
            for start, text in places
        ]
        if all(found):
            return
        problem = "it has the same size, but this export did not write it"
    mark = mark_of(store, info.path, info.nbytes)
    if mark is not None and is_of_other_code(mark):
        raise TargetConflict(OTHER_VERSION, uri=store.url(info.path))
    message = (
        f"a different file has the name of one that the export writes ({problem}); choose another folder"
    )
    raise TargetConflict(
        f"{message}, or use --overwrite to replace what an export left", uri=store.url(info.path)
    )


class _HashedFile:
    """A file of the output while it is written: literals and tensors in order, and a hash of everything."""

    def __init__(self, writer: ObjectWriter, file: OutputFile) -> None:
        self._writer, self._file = writer, file
        self._hash = xxhash.xxh3_128()
        self._tensors = [
            (number, i) for number, layer in enumerate(file.layers) for i in range(len(layer.tensors))
        ]
        self._next = 0  # index of the tensor to begin next
        self._left = 0  # missing bytes of the tensor before it

    def begin(self) -> None:
        """Writes what precedes the first values; `add` writes what precedes the next ones."""
        while self._next < len(self._tensors) and self._left == 0:  # some are without values
            self._begin_tensor()

    def room(self, nbytes: int) -> np.ndarray | None:
        """Returns room for the data that `add` gets next. See ObjectWriter.room."""
        return self._writer.room(nbytes)

    def add(self, step: Step, tensor: int, data: np.ndarray) -> None:
        """Writes the next bytes of one of the step's tensors."""
        if not data.nbytes:
            return
        if self._tensors[self._next - 1] != (step.number, tensor) or data.nbytes > self._left:
            raise self._wrong(step, tensor, data.nbytes)
        self._left -= data.nbytes
        self._write(data.data)
        self.begin()

    def close(self) -> StoredFile | None:
        """Completes the file and returns it; None if another worker has written it in the meantime."""
        self._write(self._file.literals[-1])
        nbytes = self._writer.tell()
        if self._left or nbytes != self._file.nbytes:
            raise RuntimeError(f"{self._file.path}: {nbytes} bytes were packed, not {self._file.nbytes}")
        self._writer.close()
        if self._writer.was_beaten:
            return None
        return StoredFile(self._file.path, nbytes, f"xxh3_128:{self._hash.hexdigest()}")

    def abort(self) -> None:
        self._writer.abort()

    def _begin_tensor(self) -> None:
        number, tensor = self._tensors[self._next]
        self._write(self._file.literals[self._next])
        self._left = self._file.layers[number].tensors[tensor].nbytes
        self._next += 1

    def _write(self, data: bytes | memoryview) -> None:
        self._hash.update(data)
        self._writer.write(data)

    def _wrong(self, step: Step, tensor: int, nbytes: int) -> RuntimeError:
        """Returns the error for a packer that does not keep to the sizes that it announced."""
        planned = self._file.layers[step.number].tensors[tensor]
        message = f"{step.layer_name}: {nbytes} bytes for {planned.name}, of which {self._left} are missing"
        return RuntimeError(message)
