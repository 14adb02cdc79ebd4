"""index.parquet: a row per V2 row, with its byte ranges, so that any layer is one request away."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

import pyarrow as pa

from arrowquant_dist.columns import arrow_batch
from arrowquant_dist.errors import CorruptWeights, InvalidCheckpoint
from arrowquant_dist.format.parquet.limits import (
    GuardedReader,
    check_footer,
    is_text,
    small_columns,
    texts_of,
)
from arrowquant_dist.format.record import RECORD_NAMES, RowRecord, StoredRange, columns_of, records_of
from arrowquant_dist.format.row import BLOB_NAMES, COLUMNS, HEADER_COLUMNS

INDEX_PATH = "index.parquet"
INDEX_VERSION = 1
_VERSION_KEY = "arrowquant.index_version"

_OF_RECORD = {
    "source_nbytes": pa.field("source_nbytes", pa.int64(), nullable=False),
    "row_group": pa.field("row_group", pa.int32(), nullable=False),
    "row_in_group": pa.field("row_in_group", pa.int32(), nullable=False),
    "compression": pa.field("compression", pa.string(), nullable=False),
    "method": pa.field("method", pa.string(), nullable=False),
    "kept_reason": pa.field("kept_reason", pa.string()),
}
_FIELDS = {column.name: column.index_field for column in HEADER_COLUMNS} | _OF_RECORD
_RANGE_FIELDS = tuple(field.name for field in fields(StoredRange))
_RANGE_COLUMNS = {name: [f"{name}_{field}" for field in _RANGE_FIELDS] for name in BLOB_NAMES}
INDEX_SCHEMA = pa.schema(
    [
        pa.field("part", pa.string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        *(_FIELDS[name] for name in RECORD_NAMES if name in _FIELDS),
        *(pa.field(name, pa.int64(), nullable=False) for name in chain(*_RANGE_COLUMNS.values())),
    ],
    {_VERSION_KEY: str(INDEX_VERSION)},
)
_REPEATING = [
    "part",
    "dtype",
    "quant_type",
    "compression",
    "method",
    "kept_reason",
]  # texts, and the same ones
_OPTIONAL = {
    name
    for column in COLUMNS
    if column.since is None
    for name in _RANGE_COLUMNS.get(column.name, [column.name])
}


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
    columns: dict[str, list[Any]] = {"part": parts, "shard": shards, **columns_of(records)}
    for value, names in _RANGE_COLUMNS.items():
        ranges = columns[value]
        columns |= {
            name: [getattr(one, field) for one in ranges]
            for name, field in zip(names, _RANGE_FIELDS, strict=True)
        }
    batch = arrow_batch([columns[name] for name in INDEX_SCHEMA.names], INDEX_SCHEMA)
    table = pa.Table.from_batches([batch])
    out = io.BytesIO()
    pq.write_table(
        table,
        out,
        compression="zstd",
        use_dictionary=_REPEATING,
        write_statistics=False,  # all of it is read, and each would be looked through on the way
        write_page_checksum=True,
    )
    return out.getvalue()


def read_index(data: bytes) -> list[IndexEntry]:
    """The rows of index.parquet, in its order.

    CorruptWeights where it is damaged or ranges are negative, InvalidCheckpoint where a newer release wrote it.
    """
    try:
        columns = _read_columns(data)
        _check_numbers(columns)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise CorruptWeights(
            f"{INDEX_PATH} is damaged ({error}); fetch it again, or quantize with --repair"
        ) from error
    for value, names in _RANGE_COLUMNS.items():
        if columns.keys() >= {*names}:
            columns[value] = list(map(StoredRange, *(columns.pop(name) for name in names)))
    rows = len(columns["part"])
    columns["errors"] = [None] * rows
    return list(map(IndexEntry, columns["part"], columns["shard"], records_of(columns, rows)))


def _read_columns(data: bytes) -> dict[str, list[Any]]:
    """The columns that this release knows, within what a file of this size may take. ValueError, Arrow's errors."""
    import pyarrow.parquet as pq

    check_footer(io.BytesIO(data))
    metadata = pq.read_metadata(pa.BufferReader(data))
    found = metadata.schema.to_arrow_schema()
    _check_version(found)
    schema = pa.schema(
        field for field in INDEX_SCHEMA if field.name in found.names or field.name not in _OPTIONAL
    )
    texts = [field.name for field in schema if is_text(field.type) and is_text(found.field(field.name).type)]
    guarded = GuardedReader(io.BytesIO(data))
    guarded.limit(small_columns(metadata, schema.names))
    guarded.read()  # all pages at once: Arrow then reads the same memory, which costs a third of the time
    file = pq.ParquetFile(
        pa.BufferReader(data), metadata=metadata, read_dictionary=texts, page_checksum_verification=True
    )
    # as in dataset.bare: no Python object for a thread of Arrow's
    table = file.read(columns=schema.names, use_threads=False).select(schema.names)
    return {field.name: _values(table[field.name], field) for field in schema}


def _values(column: pa.ChunkedArray, field: pa.Field) -> list[Any]:
    values: list[Any]
    if pa.types.is_dictionary(column.type):
        values = texts_of(column)
    else:  # of our own type nothing is cast: that would import pyarrow.compute, ten times the time of all the rest
        values = (column if column.type == field.type else column.cast(field.type)).to_pylist()
    if column.null_count and not field.nullable:
        raise ValueError(f"{field.name} has nulls")
    return values


def is_index(data: bytes) -> bool:
    """Whether it is an index of ours, perhaps a damaged one: the key stands in a Parquet file's last bytes as it is."""
    return data[:4] == b"PAR1" and _VERSION_KEY.encode() in data


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
    for name in (*chain(*_RANGE_COLUMNS.values()), "num_params", "row_start"):
        if min(columns.get(name, ()), default=0) < 0:
            raise ValueError(f"{name} has a negative number")
