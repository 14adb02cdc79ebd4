"""A V2 row without its blobs: what the index and the metrics say of it, and where the blobs are."""

from __future__ import annotations

from dataclasses import dataclass

from arrowquant_dist.metrics import ErrorSums


@dataclass(frozen=True, slots=True)
class StoredRange:
    """Where one value lies in its part file.

    [offset, offset + stored_nbytes) of the part holds it. compression `none`: exactly the value's bytes
    (stored_nbytes == nbytes). compression `zstd`: one compressed Parquet page body; decompressed it is a
    4-byte little-endian length, then the value. nbytes: the value's size. An empty value has stored_nbytes 0.
    """

    offset: int
    stored_nbytes: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class RowRecord:
    """One V2 row without its blobs: a row of index.parquet, and of the metrics."""

    layer_name: str
    row_start: int
    shape: tuple[int, ...]
    layer_shape: tuple[int, ...]
    row_dims: int
    dtype: str
    quant_type: str
    quant_axis: int
    group_size: int
    num_params: int
    source_nbytes: int
    row_group: int
    row_in_group: int
    compression: str
    data: StoredRange
    scales: StoredRange
    zero_points: StoredRange
    chunk_digests: StoredRange
    checksum: str
    method: str
    kept_reason: str | None
    errors: ErrorSums | None  # None for integer and bool layers
