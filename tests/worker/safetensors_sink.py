"""A minimal second sink: decoded values, with a safetensors file per shard."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import xxhash

from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.format.record import BlobRanges, PartInfo, RowRecord, StoredRange
from arrowquant_dist.plan import RowBlock, Shard
from arrowquant_dist.storage.base import Store
from arrowquant_dist.target.layout import part_path
from arrowquant_dist.tensor import QuantizedTensor
from arrowquant_dist.worker.rows import kept_reason_of, recorded_method, stored_row

_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_NOTHING = StoredRange(0, 0, 0)


@dataclass(frozen=True, slots=True)
class SafetensorsParts:
    """Layers in the source's dtype. It does not support plans that cut a layer between two shards."""

    def open(self, store: Store) -> SafetensorsSink:
        return SafetensorsSink(store)


@dataclass(frozen=True, slots=True)
class SafetensorsSink:
    store: Store

    def open_part(self, shard: Shard, attempt: str) -> SafetensorsPart:
        return SafetensorsPart(self.store, shard, attempt)


class SafetensorsPart:
    def __init__(self, store: Store, shard: Shard, attempt: str) -> None:
        self._path = part_path(shard.index, attempt, "safetensors")
        self._hash = xxhash.xxh3_128()
        self._records: list[RowRecord] = []
        header = _header(shard)
        self._writer = store.open_writer(self._path)
        self._write(len(header).to_bytes(8, "little") + header)

    def add(self, block: RowBlock, quantized: QuantizedTensor) -> None:
        row = stored_row(block, _decoded(quantized))
        place = StoredRange(self._writer.tell(), row.blobs.data.nbytes, row.blobs.data.nbytes)
        self._write(row.blobs.data.data)
        self._records.append(
            RowRecord(
                header=row.header,
                ranges=BlobRanges(place, _NOTHING, _NOTHING, _NOTHING, "none"),
                source_nbytes=block.source_nbytes,
                row_group=0,
                row_in_group=len(self._records),
                method=recorded_method(block, quantized),
                kept_reason=kept_reason_of(block, quantized),
                errors=quantized.errors,
            )
        )

    def close(self) -> PartInfo:
        nbytes = self._writer.tell()
        self._writer.close()
        return PartInfo(self._path, nbytes, f"xxh3_128:{self._hash.hexdigest()}", tuple(self._records))

    def abort(self) -> None:
        self._writer.abort()

    def _write(self, data: bytes | memoryview) -> None:
        self._hash.update(data)
        self._writer.write(data)


def _header(shard: Shard) -> bytes:
    """The header, which is known before the first value: names, dtypes, shapes and sizes follow from the plan."""
    layers = {block.layer.name: block.layer for block in shard.blocks}
    held = dict.fromkeys(layers, 0)
    for block in shard.blocks:
        held[block.layer.name] += block.num_params
    assert all(held[name] == layer.num_params for name, layer in layers.items()), "a layer is cut"
    header, stop = {}, 0
    for name, layer in layers.items():
        start, stop = stop, stop + layer.num_params * DTYPES[layer.dtype].itemsize
        header[name] = {
            "dtype": _NAMES[layer.dtype],
            "shape": list(layer.shape),
            "data_offsets": [start, stop],
        }
    return json.dumps(header).encode()


def _decoded(quantized: QuantizedTensor) -> QuantizedTensor:
    """The decoded values as a tensor that is not quantized."""
    none = np.empty(0, np.float32)
    values = quantized.values().reshape(-1).view(np.uint8)
    return replace(
        quantized, quant_type="none", codes=values, scales=none, zero_points=none, quant_axis=-1, group_size=0
    )
