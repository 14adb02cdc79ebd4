"""The sink of `quantize`: one V2 part file per shard."""

from __future__ import annotations

from dataclasses import dataclass

from arrowquant_dist.format.compression import ZstdFrames
from arrowquant_dist.format.parquet.part import PartWriter
from arrowquant_dist.format.record import PartInfo
from arrowquant_dist.plan import RowBlock, Shard
from arrowquant_dist.storage.base import Store
from arrowquant_dist.target.layout import part_path
from arrowquant_dist.tensor import QuantizedTensor
from arrowquant_dist.worker.rows import kept_reason_of, recorded_method, stored_row


@dataclass(frozen=True, slots=True)
class V2Parts:
    """Describes the sink. compression: `zstd` or `none`, as in the plan."""

    compression: str

    def open(self, store: Store) -> V2Sink:
        return V2Sink(store, self.compression)


class V2Sink:
    """See worker.sink.Sink. Its compressor is loaded at once and reused from part to part."""

    def __init__(self, store: Store, compression: str) -> None:
        self._store, self._compression = store, compression
        self._frames = ZstdFrames()
        if compression == "zstd":
            self._frames.load()

    def open_part(self, shard: Shard, attempt: str) -> V2Part:
        path = part_path(shard.index, attempt)
        return V2Part(PartWriter(self._store, path, self._compression, self._frames))


class V2Part:
    """See worker.sink.Part."""

    def __init__(self, writer: PartWriter) -> None:
        self._writer = writer

    def add(self, block: RowBlock, quantized: QuantizedTensor) -> None:
        self._writer.add(
            stored_row(block, quantized),
            source_nbytes=block.given_nbytes,
            method=recorded_method(block, quantized),
            kept_reason=kept_reason_of(block, quantized),
            errors=quantized.errors,
        )

    def close(self) -> PartInfo:
        return self._writer.close()

    def abort(self) -> None:
        self._writer.abort()
