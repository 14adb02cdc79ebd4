"""index.parquet: a row per V2 row, with its byte ranges, so that any layer is one request away."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import pyarrow as pa

from arrowquant_dist.columns import arrow_batch
from arrowquant_dist.errors import CorruptWeights, InvalidCheckpoint
from arrowquant_dist.format.record import RowRecord, StoredRange

INDEX_PATH = "index.parquet"
INDEX_VERSION = 1
_VERSION_KEY = "arrowquant.index_version"

_RANGES = ("data", "scales", "zero_points", "chunk_digests")
_RANGE_FIELDS = ("offset", "stored_nbytes", "nbytes")
_RECORD_FIELDS = [
    pa.field("layer_name", pa.string(), nullable=False),
    pa.field("row_start", pa.int64(), nullable=False),
    pa.field("shape", pa.list_(pa.int64()), nullable=False),
    pa.field("layer_shape", pa.list_(pa.int64()), nullable=False),
    pa.field("row_dims", pa.int32(), nullable=False),
    pa.field("dtype", pa.string(), nullable=False),
    pa.field("quant_type", pa.string(), nullable=False),
    pa.field("quant_axis", pa.int32(), nullable=False),
    pa.field("group_size", pa.int32(), nullable=False),
    pa.field("num_params", pa.int64(), nullable=False),
    pa.field("source_nbytes", pa.int64(), nullable=False),
    pa.field("row_group", pa.int32(), nullable=False),
    pa.field("row_in_group", pa.int32(), nullable=False),
    pa.field("compression", pa.string(), nullable=False),
    pa.field("checksum", pa.string(), nullable=False),
    pa.field("method", pa.string(), nullable=False),
    pa.field("kept_reason", pa.string()),
]
INDEX_SCHEMA = pa.schema(
    [
        pa.field("part", pa.string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        *_RECORD_FIELDS,
        *(
            pa.field(f"{value}_{field}", pa.int64(), nullable=False)
            for value in _RANGES
            for field in _RANGE_FIELDS
        ),
    ],
    {_VERSION_KEY: str(INDEX_VERSION)},
)


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One V2 row and where it is. part: path under the target. record: without metrics (`errors` None)."""

    part: str
    shard: int
    record: RowRecord


def write_index(rows: Iterable[tuple[str, int, RowRecord]]) -> bytes:
    """index.parquet of (part, shard, record) rows, in the order given. The same rows give the same bytes."""
    import pyarrow.parquet as pq

    parts, shards, records = [], [], []
    for part, shard, record in rows:
        parts.append(part)
        shards.append(shard)
        records.append(record)
    columns: list[list[Any]] = [parts, shards]
    columns += [[getattr(record, field.name) for record in records] for field in _RECORD_FIELDS]
    for value in _RANGES:
        ranges = [getattr(record, value) for record in records]
        columns += [[getattr(one, field) for one in ranges] for field in _RANGE_FIELDS]
    table = pa.Table.from_batches([arrow_batch(columns, INDEX_SCHEMA)])
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd", write_page_checksum=True)
    return out.getvalue()


def read_index(data: bytes) -> list[IndexEntry]:
    """The rows of index.parquet, in its order.

    CorruptWeights where it is damaged or ranges are negative, InvalidCheckpoint where a newer release wrote it.
    """
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True).read()
        _check_version(table.schema)
        table = table.select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA)
        columns = {name: table[name].to_pylist() for name in table.column_names}
        _check_numbers(columns)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise CorruptWeights(f"{INDEX_PATH} is damaged ({error}); quantize again or fetch it anew") from error
    columns["shape"] = [tuple(shape) for shape in columns["shape"]]
    columns["layer_shape"] = [tuple(shape) for shape in columns["layer_shape"]]
    for value in _RANGES:
        columns[value] = list(map(StoredRange, *(columns[f"{value}_{field}"] for field in _RANGE_FIELDS)))
    columns["errors"] = [None] * table.num_rows
    records = map(RowRecord, *(columns[field.name] for field in fields(RowRecord)))
    return list(map(IndexEntry, columns["part"], columns["shard"], records))


def _check_version(schema: pa.Schema) -> None:
    """ValueError where it is no number: the index is damaged."""
    version = int((schema.metadata or {}).get(_VERSION_KEY.encode(), b"1"))
    if version > INDEX_VERSION:
        message = (
            f"index_version is {version}, this release reads up to {INDEX_VERSION}; update arrowquant-dist"
        )
        raise InvalidCheckpoint(message, uri=INDEX_PATH)


def _check_numbers(columns: dict[str, list[Any]]) -> None:
    """ValueError where a number that becomes an offset or a size of memory is negative."""
    for name in [
        *(f"{value}_{field}" for value in _RANGES for field in _RANGE_FIELDS),
        "num_params",
        "row_start",
    ]:
        if min(columns[name], default=0) < 0:
            raise ValueError(f"{name} has a negative number")
