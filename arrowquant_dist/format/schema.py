"""The V1 and V2 Parquet schemas, and what one row of them is in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import xxhash

SCHEMA_VERSION = "2"
CHUNK_NBYTES = 1 << 20

_V1_FIELDS = [
    pa.field("layer_name", pa.string(), nullable=False),
    pa.field("shape", pa.list_(pa.int32()), nullable=False),
    pa.field("dtype", pa.string(), nullable=False),
    pa.field("data", pa.large_binary(), nullable=False),
    pa.field("num_params", pa.int64(), nullable=False),
]
V1_SCHEMA = pa.schema(_V1_FIELDS, {"arrowquant.schema_version": "1"})
V2_SCHEMA = pa.schema(
    [
        *_V1_FIELDS,
        pa.field("quant_type", pa.string(), nullable=False),
        pa.field("scales", pa.binary(), nullable=False),
        pa.field("zero_points", pa.binary(), nullable=False),
        pa.field("quant_axis", pa.int32(), nullable=False),
        pa.field("group_size", pa.int32(), nullable=False),
        pa.field("layer_shape", pa.list_(pa.int64()), nullable=False),
        pa.field("row_dims", pa.int32(), nullable=False),
        pa.field("row_start", pa.int64(), nullable=False),
        pa.field("chunk_digests", pa.binary(), nullable=False),
        pa.field("checksum", pa.string(), nullable=False),
    ],
    {"arrowquant.schema_version": SCHEMA_VERSION},
)


@dataclass(frozen=True, slots=True, eq=False)
class StoredRow:
    """One row of a V2 dataset: a layer, or a row block of one.

    data: uint8 [nbytes], packed codes or raw little-endian values. scales, zero_points: float32 [groups] in C
    order of [rows, groups a row]; zero_points empty where symmetric, both empty where nothing is quantized.
    """

    layer_name: str
    shape: tuple[int, ...]
    dtype: str
    data: np.ndarray
    quant_type: str
    scales: np.ndarray
    zero_points: np.ndarray
    quant_axis: int
    group_size: int
    layer_shape: tuple[int, ...]
    row_dims: int
    row_start: int
    chunk_digests: bytes
    checksum: str

    @property
    def num_params(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


def chunk_digests(data: np.ndarray) -> bytes:
    """xxh3_128 digests (16 bytes, big-endian) of each 1 MiB of `data` (uint8 [n]); b"" for no data."""
    view = data.data.cast("B") if data.size else memoryview(b"")
    return b"".join(
        xxhash.xxh3_128_digest(view[start : start + CHUNK_NBYTES])
        for start in range(0, len(view), CHUNK_NBYTES)
    )


def row_checksum(digests: bytes, scales: np.ndarray, zero_points: np.ndarray) -> str:
    """`xxh3_128:<hex>` of chunk_digests ‖ scales ‖ zero_points."""
    state = xxhash.xxh3_128(digests)
    state.update(np.ascontiguousarray(scales, "<f4").data.cast("B") if scales.size else b"")
    state.update(np.ascontiguousarray(zero_points, "<f4").data.cast("B") if zero_points.size else b"")
    return f"xxh3_128:{state.hexdigest()}"
