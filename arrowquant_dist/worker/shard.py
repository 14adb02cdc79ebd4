"""The worker: turns shards into committed parts, one at a time."""

from __future__ import annotations

import itertools
import os
import socket
import uuid
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from arrowquant_dist.arena import Arena
from arrowquant_dist.checkpoint.reader import SourceReader
from arrowquant_dist.checkpoint.table import SourceFile
from arrowquant_dist.code_digest import code_digest
from arrowquant_dist.config import DEFAULT_STORAGE, Storage
from arrowquant_dist.errors import RESUMES, IncompleteDataset, Interrupted
from arrowquant_dist.format.record import PartInfo
from arrowquant_dist.machine import peak_memory_nbytes, resident_nbytes
from arrowquant_dist.methods import Given, TensorScale, span_of
from arrowquant_dist.plan import RowBlock, Shard, expected_nbytes
from arrowquant_dist.plan.batches import batches_of
from arrowquant_dist.storage.traffic import Transferred
from arrowquant_dist.storage.uris import is_local
from arrowquant_dist.target.receipt import Receipt
from arrowquant_dist.target.shards import CommittedShards
from arrowquant_dist.target.target import Target
from arrowquant_dist.tensor import QuantizedTensor, quantize_values
from arrowquant_dist.tensor.source import check_finite, kernel_bits, read_only
from arrowquant_dist.worker.batches import ReadAhead, ReadInTurn
from arrowquant_dist.worker.clock import Clock
from arrowquant_dist.worker.job import OnBlock, OnCompile, ShouldStop
from arrowquant_dist.worker.kernels import COMPILE, Kernels
from arrowquant_dist.worker.side_inputs import SidePreparer
from arrowquant_dist.worker.sink import Part, Sink, SinkSpec

_THREADS = itertools.count()  # numbers of this process's workers


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """What every worker of a run needs to know; small, and travels to other machines.

    target: URI of the target.
    fingerprint: that of the plan, so that a commit says which plan it belongs to.
    sink: what is written.
    files: the source's.
    side_files: those of the methods' side inputs, accessed with the source's storage options.
    run: the id of the run; None if runs with equal plans need not be told apart.

    Storage options may hold secrets; they are left out of its repr.
    """

    target: str
    fingerprint: str
    sink: SinkSpec
    files: tuple[SourceFile, ...]
    source_storage: Storage = DEFAULT_STORAGE
    target_storage: Storage = DEFAULT_STORAGE
    side_files: tuple[SourceFile, ...] = ()
    run: str | None = None

    def open_worker(self, node: str | None, on_compile: OnCompile) -> ShardWorker:
        return ShardWorker(self, node, on_compile)

    def code(self) -> str:
        return code_digest()


class ShardWorker:
    """Turns shards into committed parts, one at a time. Not thread-safe: use one worker per thread.

    The next two batches of row blocks are read while the current one is quantized, and earlier output is still being
    uploaded to an object store. Memory: the source bytes of three batches (of one for local files), the codes of a
    block, and what the sink holds (plan.worker_memory_nbytes is the bound), whatever the shard's size. node: the
    machine's name in receipts; default its host name. on_compile: called with what kernels are being compiled for.
    name: this process's name in receipts, `host/pid`.
    """

    def __init__(
        self, context: WorkerContext, node: str | None = None, on_compile: OnCompile = lambda _: None
    ) -> None:
        self._context = context
        self._node = node or socket.gethostname()
        self.name = f"{socket.gethostname()}/{os.getpid()}"
        self._thread = next(_THREADS)
        self._reader = SourceReader(context.source_storage, context.files)
        self._target = Target.open(context.target, context.target_storage)
        self._shards = CommittedShards(self._target, context.fingerprint, context.run)
        from_disk = all(is_local(file.uri) for file in context.files)
        self._read_batches = ReadInTurn(self._reader) if from_disk else ReadAhead(self._reader)
        self._side_reader = SourceReader(context.source_storage, context.side_files)
        self._side = SidePreparer(self._side_reader)
        self._codes = Arena()
        self._kernels = Kernels(self._reader, on_compile)
        self._sink: Sink | None = None

    def run(self, shard: Shard, on_block: OnBlock, should_stop: ShouldStop) -> Receipt:
        """Writes and commits the shard; the receipt that counts may be that of another attempt that was first.

        on_block is called after each row block. If should_stop() returns true, or anything fails, the unfinished part
        is deleted and nothing is committed; likewise if the source is not the one that was planned, or changes
        meanwhile (SourceChanged). Raises Interrupted, and what reading and quantizing raise.
        """
        clock, before = Clock(), self._transferred()
        attempt = uuid.uuid4().hex[:16]
        self._kernels.prepare(shard.blocks, clock)
        self._codes.reserve(max(map(expected_nbytes, shard.blocks), default=0))
        part = self._open_sink(clock).open_part(shard, attempt)
        try:
            with self._kernels.told("what is read"):
                self._fill(part, shard, clock, on_block, should_stop)
            self._reader.confirm()
            self._side_reader.confirm()
            with clock.phase("write"):
                written = part.close()
        finally:
            part.abort()  # does nothing after `close`
        receipt = self._receipt(shard, attempt, written, clock, self._transferred() - before)
        if self._shards.commit(receipt):
            return receipt
        counting = self.committed(shard)
        if counting is None:
            # the other attempt's part is gone, so its commit is stale and the shard has to be done again
            message = (
                f"shard {shard.index}: the attempt that won has lost its part; run the same command again"
            )
            raise IncompleteDataset(message, uri=self._target.store.uri)
        return counting

    def committed(self, shard: Shard) -> Receipt | None:
        """The receipt that counts for a shard, whoever made it; None if there is none yet."""
        return self._shards.receipt(shard.index)

    def _open_sink(self, clock: Clock) -> Sink:
        if self._sink is None:
            with clock.phase(COMPILE), self._kernels.told("compression"):
                self._sink = self._context.sink.open(self._target.store)
        return self._sink

    def _transferred(self) -> Transferred:
        return self._reader.transferred + self._side_reader.transferred + self._target.store.traffic.total

    def _fill(
        self, part: Part, shard: Shard, clock: Clock, on_block: OnBlock, should_stop: ShouldStop
    ) -> None:
        """Reads, quantizes and writes the shard's row blocks in their order."""
        scales = self._tensor_scales(shard, clock)
        with closing(self._read_batches(batches_of(shard.blocks), clock)) as batches:
            for block, values in batches:
                if should_stop():
                    raise Interrupted(RESUMES)
                scale, side = scales.get(block.layer.name), self._side.side_of(block)
                with clock.phase("quantize"):
                    quantized = self._quantize(block, values, Given(scale, side, block.row_start))
                with clock.phase("write"):
                    part.add(block, quantized)
                on_block(block)

    def _quantize(self, block: RowBlock, values: np.ndarray, given: Given) -> QuantizedTensor:
        """Quantizes the block. The codes are in memory that the next block reuses."""
        self._codes.reset()
        return quantize_values(
            values,
            block.shape,
            block.layer.dtype,
            block.own_spec,
            given=given,
            layer=block.layer.name,
            layer_shape=block.layer.shape,
            first_value=block.value_range[0],
            allocate=self._codes.take,
        )

    def _receipt(
        self, shard: Shard, attempt: str, written: PartInfo, clock: Clock, transferred: Transferred
    ) -> Receipt:
        return Receipt(
            shard=shard.index,
            attempt=attempt,
            part=written.path,
            nbytes=written.nbytes,
            hash=written.hash,
            rows=written.records,
            seconds=dict(clock.seconds),
            wall_seconds=clock.wall_seconds,
            peak_memory_nbytes=peak_memory_nbytes(),
            worker=self.name,
            node=self._node,
            read_nbytes=transferred.read_nbytes,
            written_nbytes=transferred.written_nbytes,
            retries=transferred.retries,
            started_at=round(clock.started_at, 3),
            resident_nbytes=resident_nbytes(),
            thread=self._thread,
        )

    def _tensor_scales(self, shard: Shard, clock: Clock) -> dict[str, TensorScale]:
        """The scale of each layer that has one scale for several row blocks: such a layer is read once before it is
        quantized.

        The plan keeps all blocks of such a layer in one shard. Layers of one block need no first pass.
        """
        cut = defaultdict(list)
        for block in shard.blocks:
            if block.spec.chooses_codes and block.spec.quant_axis < 0 and not block.is_whole:
                cut[block.layer.name].append(block)
        if cut:
            self._side.release()
        return {name: self._tensor_scale(blocks, clock) for name, blocks in cut.items()}

    def _tensor_scale(self, blocks: list[RowBlock], clock: Clock) -> TensorScale:
        span = span_of(blocks[0].spec)
        with closing(self._read_batches(batches_of(blocks), clock)) as batches:
            for block, values in batches:
                with clock.phase("quantize"):
                    layer = block.layer
                    if not block.spec.keep_non_finite:
                        check_finite(values, layer.dtype, layer.shape, block.value_range[0], layer.name)
                    span.add(read_only(kernel_bits(values, layer.dtype)))
        return span.scale()
