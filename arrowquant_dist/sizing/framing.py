"""Computes the size of a plan's parts, framing included, from the sizes of their values.

Parts are written by PartWriter itself, to nowhere and with compressed frames of the predicted lengths, so only one
place has to know what a part has besides its values.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.format.parquet.part import PartWriter
from arrowquant_dist.plan import Plan, RowBlock
from arrowquant_dist.plan.sizes import SCALE_NBYTES, scales_row_nbytes
from arrowquant_dist.sizing.measure import Measured
from arrowquant_dist.storage.base import ObjectWriter
from arrowquant_dist.target.layout import part_path
from arrowquant_dist.tensor import QuantizedTensor, row_nbytes
from arrowquant_dist.worker.rows import stored_row

_MARK = b"\xde\xc0\x17\x5a"  # beginning of a value that stands for one whose frame has a known length
_NUMBER = slice(4, 8)  # where the value's number is
_LEAST_NBYTES = 8  # size of the smallest such value: shorter values are compressed as they are
_ATTEMPT = "0" * 16


def parts_nbytes(plan: Plan, measured: Mapping[str, Measured]) -> int:
    """Bytes of all part files. measured: {layer: its sizes}, for every layer of the plan."""
    total = 0
    seen: dict[str, int] = {}  # {layer: index of its last row block so far}
    for shard in plan.shards:
        frames = _KnownFrames()
        writer = PartWriter(_Nowhere(), part_path(shard.index, _ATTEMPT), plan.compression, frames)
        for block in shard.blocks:
            name = block.layer.name
            index = seen[name] = seen.get(name, -1) + 1
            row = stored_row(block, _stand_in(block, measured[name], index, frames))
            writer.add(row, source_nbytes=0, method="none", kept_reason=None, errors=None)
        total += writer.close().nbytes
    return total


def _stand_in(block: RowBlock, found: Measured, index: int, frames: _KnownFrames) -> QuantizedTensor:
    spec = found.spec
    quant_type = "none" if found.too_wide else spec.quant_type
    data_nbytes = block.rows * row_nbytes(quant_type, block.columns, block.layer.dtype)
    scales_nbytes = _scales_nbytes(spec, block)
    zeros_nbytes = 0 if spec.symmetric else scales_nbytes
    return QuantizedTensor(
        block.shape,
        block.layer.dtype,
        quant_type,
        frames.value(data_nbytes, found.data_nbytes[index]),
        frames.value(scales_nbytes, found.scales_nbytes[index]).view(np.float32),
        frames.value(zeros_nbytes, found.zero_points_nbytes[index]).view(np.float32),
        spec.quant_axis,
        spec.stored_group_size,
        spec.row_dims,
    )


def _scales_nbytes(spec: QuantSpec, block: RowBlock) -> int:
    if spec.is_quantized and spec.quant_axis == -1:
        return SCALE_NBYTES
    return block.rows * scales_row_nbytes(spec, block.columns)


class _KnownFrames:
    """Stands in for ZstdFrames: for values that it has made, it gives frames of the lengths that it was told."""

    def __init__(self) -> None:
        self._codec = pa.Codec("zstd")
        self._lengths: list[int] = []

    def value(self, nbytes: int, frame_nbytes: int) -> np.ndarray:
        """A stand-in for a value: uint8 [nbytes], zeros except for the mark and its number."""
        made = np.zeros(nbytes, np.uint8)
        if nbytes >= _LEAST_NBYTES:
            made[: _NUMBER.start] = np.frombuffer(_MARK, np.uint8)
            made[_NUMBER] = np.frombuffer(len(self._lengths).to_bytes(4, "little"), np.uint8)
            self._lengths.append(frame_nbytes)
        return made

    def compress(self, prefix: bytes, value: memoryview) -> memoryview:
        """See ZstdFrames.compress."""
        if value.nbytes < _LEAST_NBYTES or bytes(value[: _NUMBER.start]) != _MARK:
            return memoryview(self._codec.compress(prefix + value))
        length = self._lengths[int.from_bytes(value[_NUMBER], "little")]
        return memoryview(bytes(length))


class _Sink(ObjectWriter):
    def _write(self, data: memoryview) -> None:
        pass

    def _close(self) -> None:
        pass

    def _abort(self) -> None:
        pass


class _Nowhere:
    """Stands in for a Store, and keeps nothing."""

    def url(self, path: str) -> str:
        return path

    def open_writer(self, _path: str) -> ObjectWriter:
        return _Sink()
