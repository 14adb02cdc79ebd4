"""index.parquet: one row per V2 row, with its byte ranges, so that any layer can be read in one request."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import pyarrow as pa

from arrowquant_dist.columns import arrow_batch, fixed_values
from arrowquant_dist.errors import CorruptWeights, InvalidCheckpoint, listed
from arrowquant_dist.format.parquet.limits import (
    GuardedReader,
    check_footer,
    dictionary_of,
    is_text,
    small_columns,
)
from arrowquant_dist.format.record import RECORD_NAMES, RowRecord, StoredRange, columns_of, records_of
from arrowquant_dist.format.row import BLOB_NAMES, COLUMNS, HEADER_COLUMNS

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

INDEX_PATH = "index.parquet"
INDEX_VERSION = 1
_VERSION_KEY = "arrowquant.index_version"
T = TypeVar("T")

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
]  # text columns with few distinct values
_KINDS = dict(zip(INDEX_SCHEMA.names, INDEX_SCHEMA.types, strict=True))
_TEXTS = [name for name, kind in _KINDS.items() if is_text(kind)]
_SHAPES = {name for name, kind in _KINDS.items() if pa.types.is_list(kind)}
_NO_NEGATIVES = (*chain(*_RANGE_COLUMNS.values()), "num_params", "row_start")
_NULLABLE = {field.name for field in INDEX_SCHEMA if field.nullable}
_OPTIONAL = {
    name
    for column in COLUMNS
    if column.since is None
    for name in _RANGE_COLUMNS.get(column.name, [column.name])
}


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One V2 row and its place. part: path under the target. record: the row, without metrics (`errors` is None)."""

    part: str
    shard: int
    record: RowRecord


@dataclass(frozen=True, slots=True, eq=False)
class Coded(Generic[T]):
    """A column whose values repeat. values: the distinct values, in the order of their first rows if these are in one
    row group. codes: int64 [rows], the position in `values` for each row."""

    codes: np.ndarray
    values: Sequence[T]

    def to_list(self) -> list[T]:
        values = self.values
        return [values[code] for code in self.codes.tolist()]


@dataclass(frozen=True, slots=True, eq=False)
class IndexTable:
    """The rows of index.parquet as columns, in its order, for datasets of many layers of which few may be read.

    numbers: int64 [rows] by column name; offsets and sizes are not negative. texts, shapes: the other columns by
    name.
    """

    rows: int
    numbers: Mapping[str, np.ndarray]
    texts: Mapping[str, Coded[str | None]]
    shapes: Mapping[str, Coded[tuple[int, ...]]]

    def ranges(self, value: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Offset, stored_nbytes and nbytes of `value` (of BLOB_NAMES) for each row; zeros if the index lacks it."""
        none = np.zeros(self.rows, np.int64)
        offset, stored, nbytes = (self.numbers.get(name, none) for name in _RANGE_COLUMNS[value])
        return offset, stored, nbytes

    def layer_name(self, row: int) -> str:
        names = self.texts["layer_name"]
        return names.values[int(names.codes[row])] or ""

    def entries(self) -> list[IndexEntry]:
        return self.some(range(self.rows))

    def some(self, rows: Sequence[int]) -> list[IndexEntry]:
        """The entries of the given rows, in the order given."""
        taken = np.asarray(rows, np.int64)
        columns: dict[str, list[Any]] = {name: of[taken].tolist() for name, of in self.numbers.items()}
        for name, coded in chain[tuple[str, Coded[Any]]](self.texts.items(), self.shapes.items()):
            columns[name] = Coded(coded.codes[taken], coded.values).to_list()
        for value, names in _RANGE_COLUMNS.items():
            if columns.keys() >= {*names}:
                columns[value] = list(map(StoredRange, *(columns.pop(name) for name in names)))
        columns["errors"] = [None] * len(rows)
        records = records_of(columns, len(rows))
        return list(map(IndexEntry, columns["part"], columns["shard"], records))


def write_index(rows: Iterable[tuple[str, int, RowRecord]]) -> bytes:
    """Writes index.parquet from (part, shard, record) rows, in the order given. Equal rows give equal bytes."""
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
        write_statistics=False,  # all of it is always read; the statistics would only be parsed on the way
        write_page_checksum=True,
    )
    return out.getvalue()


def read_index(data: bytes) -> list[IndexEntry]:
    """The rows of index.parquet, in its order. Raises as `read_table`."""
    return read_table(data).entries()


def read_table(data: bytes) -> IndexTable:
    """The columns of index.parquet.

    Raises CorruptWeights if it is damaged or has negative ranges, InvalidCheckpoint if a newer release wrote it.
    """
    try:
        table = _read_columns(data)
        _check_numbers(table)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise CorruptWeights(
            f"{INDEX_PATH} is damaged ({error}); fetch it again, or quantize with --repair"
        ) from error
    return table


def _read_columns(data: bytes) -> IndexTable:
    """The columns that this release knows, limited to the memory that a file of this size may take. Raises ValueError
    and Arrow's errors."""
    file = _opened(data)
    found = file.schema_arrow
    _check_version(found)
    stored = {*found.names}
    names = [name for name in _KINDS if name in stored or name not in _OPTIONAL]
    guarded = GuardedReader(io.BytesIO(data))
    guarded.limit(small_columns(file.metadata, names))
    guarded.read()  # checks all pages at once; Arrow then reads the same memory, in a third of the time
    # as in dataset.bare: Arrow's threads must not get a Python object
    read = file.read(columns=names, use_threads=False)
    # from batches: going through a table's columns and their chunks takes twice the time
    batches = [batch.columns for batch in read.to_batches()]
    columns = {name: [batch[at] for batch in batches] for at, name in enumerate(read.schema.names)}
    numbers, coded, shapes = {}, {}, {}
    for name in names:
        kind, chunks = _KINDS[name], columns[name]
        if name not in _NULLABLE and any(chunk.null_count for chunk in chunks):
            raise ValueError(f"{name} has nulls")
        if name in _TEXTS:
            coded[name] = _texts(chunks)
        elif name in _SHAPES:
            shapes[name] = _shapes(chunks, kind)
        else:
            numbers[name] = _numbers(chunks, kind)
    return IndexTable(read.num_rows, numbers, coded, shapes)


def _opened(data: bytes) -> ParquetFile:
    """Opens the index so that Arrow reads texts as dictionaries with indices, whatever their stored type."""
    import pyarrow.parquet as pq

    check_footer(io.BytesIO(data))
    open_with = partial(pq.ParquetFile, page_checksum_verification=True)
    try:
        return open_with(pa.BufferReader(data), read_dictionary=_TEXTS)
    except KeyError:  # a column is missing that only some releases write
        stored = {*pq.read_schema(pa.BufferReader(data)).names}
        texts = [name for name in _TEXTS if name in stored]
        return open_with(pa.BufferReader(data), read_dictionary=texts)


def _numbers(chunks: Sequence[pa.Array], kind: pa.DataType) -> np.ndarray:
    """The values as int64. Values of the expected type are not cast: that would import pyarrow.compute, which takes
    ten times as long as everything else."""
    return _joined([fixed_values(_as_kind(chunk, kind)).astype(np.int64) for chunk in chunks])


def _texts(chunks: Sequence[pa.Array]) -> Coded[str | None]:
    values: dict[str | None, int] = {}
    codes = []
    for found in chunks:
        is_coded = pa.types.is_dictionary(found.type)
        chunk = found if is_coded else found.cast(pa.string()).dictionary_encode()
        own = [values.setdefault(text, len(values)) for text in dictionary_of(chunk)]
        if chunk.null_count:
            null = values.setdefault(None, len(values))
            of_chunk = [null if index is None else own[index] for index in chunk.indices.to_pylist()]
            codes.append(np.array(of_chunk, np.int64))
        elif own:
            codes.append(np.array(own, np.int64)[fixed_values(chunk.indices)])
    return Coded(_joined(codes), [*values])


def _shapes(chunks: Sequence[pa.Array], kind: pa.DataType) -> Coded[tuple[int, ...]]:
    values: dict[tuple[int, ...], int] = {}
    codes: list[int] = []
    for chunk in (_as_kind(found, kind) for found in chunks):
        if chunk.values.null_count:
            raise ValueError("a shape has nulls")
        flat, ends = fixed_values(chunk.values).tolist(), fixed_values(chunk.offsets).tolist()
        each = [tuple(flat[start:stop]) for start, stop in pairwise(ends)]
        codes += [values.setdefault(shape, len(values)) for shape in each]
    return Coded(np.array(codes, np.int64), [*values])


def _as_kind(chunk: pa.Array, kind: pa.DataType) -> pa.Array:
    return chunk if chunk.type == kind else chunk.cast(kind)


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    if len(arrays) == 1:
        return arrays[0]
    return np.concatenate(arrays) if arrays else np.empty(0, np.int64)


def check_places(table: IndexTable, parts: Mapping[str, tuple[int, int]], uri: str) -> None:
    """Raises CorruptWeights if a row names a part that is not in `parts`, a range exceeds its part, or a part has
    another number of rows. parts: {path: (rows, bytes)}. uri: URI of the index, for errors."""
    part = table.texts["part"]
    stops = np.array([parts.get(path or "", (0, -1))[1] for path in part.values], np.int64)[part.codes]
    for row in np.flatnonzero(stops < 0)[:1].tolist():
        message = f"the index has a row in {part.to_list()[row]!r}, which the manifest does not list"
        raise CorruptWeights(message, layer=table.layer_name(row), uri=uri)
    for value in BLOB_NAMES:
        offset, stored, _ = table.ranges(value)
        for row in np.flatnonzero(offset > stops - stored)[:1].tolist():
            where = (int(offset[row]), int(offset[row]) + int(stored[row]))
            message = f"the index points beyond the end of {part.to_list()[row]}; quantize again"
            raise CorruptWeights(message, layer=table.layer_name(row), uri=uri, byte_range=where)
    counts = np.bincount(part.codes, minlength=len(part.values)).tolist()
    rows = dict(zip(part.values, counts, strict=True))
    wrong = [path for path, (count, _) in parts.items() if rows.get(path, 0) != count]
    if wrong:
        message = f"the index and the manifest list different numbers of rows for {listed(wrong)}"
        raise CorruptWeights(message, uri=uri)


def is_index(data: bytes) -> bool:
    """Whether the data is our index, perhaps a damaged one: the key is plain text at the end of the file."""
    return data[:4] == b"PAR1" and _VERSION_KEY.encode() in data


def _check_version(schema: pa.Schema) -> None:
    """Raises InvalidCheckpoint for an index of a newer release, ValueError if the version is not a number: the index
    is then damaged."""
    version = int((schema.metadata or {}).get(_VERSION_KEY.encode(), b"1"))
    if version > INDEX_VERSION:
        message = (
            f"index_version is {version}, this release reads up to {INDEX_VERSION}; update arrowquant-dist"
        )
        raise InvalidCheckpoint(message, uri=INDEX_PATH)


def _check_numbers(table: IndexTable) -> None:
    """Raises ValueError if a number that is used as an offset or a memory size is negative."""
    for name in _NO_NEGATIVES:
        if name in table.numbers and table.numbers[name].min(initial=0) < 0:
            raise ValueError(f"{name} has a negative number")
