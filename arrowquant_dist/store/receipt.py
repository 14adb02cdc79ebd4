"""What a worker returns for a finished shard: names, places, sizes, hashes, metrics. Never weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

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


@dataclass(frozen=True, slots=True)
class Receipt:
    """A finished shard. part: path under the target. nbytes, hash (`xxh3_128:<hex>`): of the part file.

    seconds: of `read`, `quantize` and `write`, which overlap, each how long something of it was at work or waited for
    the storage. wall_seconds: from the start of this attempt to its commit. peak_memory_nbytes: peak resident set of
    the worker's process so far. worker: the process, `host/pid`; node: its machine, as the engine names it.
    read_nbytes, written_nbytes, retries: of this attempt's requests.
    """

    shard: int
    attempt: str
    part: str
    nbytes: int
    hash: str
    rows: tuple[RowRecord, ...]
    seconds: dict[str, float]
    peak_memory_nbytes: int
    worker: str
    node: str
    wall_seconds: float
    read_nbytes: int
    written_nbytes: int
    retries: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Receipt:
        return cls(**{**values, "rows": tuple(_row_from_dict(row) for row in values["rows"])})


def _row_from_dict(values: dict[str, Any]) -> RowRecord:
    ranges = {k: StoredRange(**values[k]) for k in ("data", "scales", "zero_points", "chunk_digests")}
    errors = values["errors"]
    return RowRecord(
        **{
            **values,
            **ranges,
            "shape": tuple(values["shape"]),
            "layer_shape": tuple(values["layer_shape"]),
            "errors": ErrorSums.from_dict(errors) if errors is not None else None,
        }
    )
