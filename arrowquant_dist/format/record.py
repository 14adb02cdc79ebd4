"""A V2 row without its blobs: what the index and the metrics record about it, and where the blobs are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import starmap
from typing import Any, TypeVar

import numpy as np

from arrowquant_dist.format.row import (
    BLOB_NAMES,
    COLUMNS,
    HEADER_NAMES,
    Blobs,
    RowHeader,
    headers_of,
)
from arrowquant_dist.metrics import ErrorSums


@dataclass(frozen=True, slots=True)
class StoredRange:
    """Where one value is in its part file: bytes [offset, offset + stored_nbytes).

    With compression `none` these are exactly the value's bytes (stored_nbytes == nbytes). With `zstd` they are one
    compressed Parquet page body, which decompresses to a 4-byte little-endian length followed by the value. nbytes:
    size of the value. An empty value has stored_nbytes 0.
    """

    offset: int
    stored_nbytes: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class BlobRanges(Blobs[StoredRange]):
    """Where a row's values are in its object, so that they can be read as plain byte ranges, without Parquet."""

    compression: str


@dataclass(frozen=True, slots=True)
class RowRecord:
    """One V2 row without its blobs: a row of index.parquet, and of the metrics."""

    header: RowHeader
    ranges: BlobRanges
    source_nbytes: int
    row_group: int
    row_in_group: int
    method: str
    kept_reason: str | None
    errors: ErrorSums | None  # None for integer and bool layers, and for codes kept from the source


@dataclass(frozen=True, slots=True)
class PartInfo:
    """A finished part: one object with the rows of a shard.

    path: relative to the target. nbytes: size of the object. hash: `xxh3_128:<hex>` of all its bytes. records: its
    rows, in the order of the shard's row blocks.
    """

    path: str
    nbytes: int
    hash: str
    records: tuple[RowRecord, ...]


Nbytes = TypeVar("Nbytes", int, np.ndarray)
_OWN_NAMES = tuple(field.name for field in fields(RowRecord) if field.name not in {"header", "ranges"})
_RANGES_NAMES = tuple(field.name for field in fields(BlobRanges))

# The columns of a record as plain values, in the order of the index (version 1) and of commits (version 3).
RECORD_NAMES = (
    *(name for name in HEADER_NAMES if name != "checksum"),
    *("source_nbytes", "row_group", "row_in_group", "compression"),
    *BLOB_NAMES,
    *("checksum", "method", "kept_reason", "errors"),
)
_NO_RANGE = StoredRange(0, 0, 0)
_REQUIRED_NAMES = {*RECORD_NAMES} - {column.name for column in COLUMNS if column.since is None}


def columns_of(records: Sequence[RowRecord]) -> dict[str, list[Any]]:
    """{name: list with a value for each record}, for RECORD_NAMES."""
    headers, ranges = [record.header for record in records], [record.ranges for record in records]
    holders: dict[str, Sequence[Any]] = dict.fromkeys(HEADER_NAMES, headers)
    holders |= dict.fromkeys(_RANGES_NAMES, ranges)
    holders |= dict.fromkeys(_OWN_NAMES, records)
    return {name: [getattr(one, name) for one in holders[name]] for name in RECORD_NAMES}


def records_of(columns: Mapping[str, Iterable[Any]], count: int) -> Iterator[RowRecord]:
    """The `count` records from columns as `columns_of` makes them. Raises KeyError if a column is missing, unless it is
    one that a file may lack.

    To save memory in a driver, which keeps the records of all shards, no dict is made per row, and equal shapes and
    strings are the same object.
    """
    missing = _REQUIRED_NAMES - columns.keys()
    if missing:
        raise KeyError(*sorted(missing))
    ranges = zip(*(columns.get(name, [_NO_RANGE] * count) for name in _RANGES_NAMES), strict=True)
    own = (columns[name] for name in _OWN_NAMES)
    headers = headers_of(columns, count)
    return starmap(RowRecord, zip(headers, starmap(BlobRanges, ranges), *own, strict=True))


def most_stored_nbytes(nbytes: Nbytes) -> Nbytes:
    """Upper bound of zstd's compressed size of a value, or of each of several values."""
    found: Nbytes = nbytes + nbytes // 128 + 1024
    return found


def ranges_problem(ranges: BlobRanges) -> str | None:
    """Why a row's byte ranges are impossible; None if they are possible."""
    if ranges.compression not in {"none", "zstd"}:
        return f"compression {ranges.compression!r} is not known"
    for value in ranges:
        stored, nbytes = value.stored_nbytes, value.nbytes
        if value.offset < 0 or stored < 0 or nbytes < 0:
            return "a byte range is negative"
        if stored != nbytes and ranges.compression == "none":
            return "an uncompressed value's stored size differs from its size"
        if stored > most_stored_nbytes(nbytes):
            return "a compressed value is larger than zstd makes it"
    return None
