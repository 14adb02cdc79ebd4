"""V1 and V2 Parquet files without an index: small columns are read on opening, values later through pyarrow."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from arrowquant_dist.dataset.layers import StoredBlock
from arrowquant_dist.dataset.values import Values
from arrowquant_dist.errors import CorruptWeights, NotFound, counted
from arrowquant_dist.format.parquet.limits import (
    GuardedReader,
    PageLimit,
    check_footer,
    is_text,
    pages_start,
    small_columns,
    texts_of,
)
from arrowquant_dist.format.record import StoredRange
from arrowquant_dist.format.row import (
    BLOB_NAMES,
    COLUMNS,
    HEADER_COLUMNS,
    BlobColumn,
    Blobs,
    SmallColumn,
    headers_of,
    row_problem,
    sizes_problem,
)
from arrowquant_dist.format.schema import V1_SCHEMA, VERSION_KEY
from arrowquant_dist.storage.base import Store

READ_BUFFER_NBYTES = 1 << 20
_FEW_ROWS = 1 << 10  # up to so many rows small columns are read together, otherwise one after another
_SPARE_NBYTES, _SPARE_ROW_NBYTES = 1 << 16, 64  # allowed besides the values in a column's pages, and per row


class ReadCounter:
    """Counts bytes requested from the store. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.nbytes = 0

    def add(self, nbytes: int) -> None:
        with self._lock:
            self.nbytes += nbytes


class OpenRowGroup:
    """The row group that was read last, kept open after the row that was read, since the next row is likely to follow.
    Thread-safe.

    It is read row by row, because decoding a whole row group at once takes up to five times its size.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: tuple[str, int] | None = None
        self._rows: Iterator[pa.RecordBatch] = iter(())
        self._next = 0

    def row(self, key: tuple[str, int], row: int, start: Callable[[], Iterator[pa.RecordBatch]]) -> Any:
        """Row `row` of the row group `key`; None if it has fewer rows. start: returns the rows from the first on."""
        with self._lock:
            if self._key != key or row < self._next:
                self._key, self._rows = None, iter(())  # frees the old one's memory before the new one's
                self._rows, self._next = start(), 0
            self._key = None  # if a row cannot be read, nothing stays open
            found = None
            while self._next <= row:
                found = next(self._rows, None)
                self._next += 1
            self._key = key
            return found


class BareFile:
    """One Parquet file. Row groups of several rows are read from their first row on, so rows are best read in order.

    version: `1` or `2`. blocks: its rows, unchecked (see layers.group_layers). kept_nbytes: the most memory that a row
    group of several rows takes in `kept`. Raises NotFound if the file is some other table, and CorruptWeights if it is
    not V1 or V2 in some other way.

    Arrow's threads are not used for reading: one that releases a Python object while the interpreter shuts down
    terminates the process.
    """

    def __init__(self, store: Store, path: str, kept: OpenRowGroup) -> None:
        self._store, self._path, self._kept = store, path, kept
        with self._translated(), store.open_reader(path) as reader:
            check_footer(reader)
            file = pq.ParquetFile(reader, page_checksum_verification=True)
            self._metadata = file.metadata
            self.version = self._schema_version(file.schema_arrow)
            self._names = self._known_names(file.schema_arrow)
            leaves = [file.schema.column(i).path for i in range(len(file.schema.names))]
            self._data_index = leaves.index("data")
            groups = range(self._metadata.num_row_groups)
            self._group_rows = [self._metadata.row_group(group).num_rows for group in groups]
            small = self._small_columns(reader, file.schema_arrow)
        self.kept_nbytes = max((self._nbytes(g) for g in groups if self._group_rows[g] > 1), default=0)
        self.blocks = tuple(self._blocks(small))

    def read(self, block: StoredBlock, counter: ReadCounter) -> Values:
        """The block's values, in memory that is the caller's. Raises CorruptWeights, naming the layer, if Parquet
        cannot decode them."""
        layer = block.header.layer_name
        try:
            batch = self._row(block, counter)
        except CorruptWeights as error:
            raise CorruptWeights(error.message, layer=error.layer or layer, uri=error.uri) from error
        if batch is None:
            raise self._corrupt("its row group has fewer rows than it says", layer)
        blobs = [_blob(batch[name]) if name in self._names else np.empty(0, np.uint8) for name in BLOB_NAMES]
        problem = sizes_problem(block.header, Blobs(*(blob.size for blob in blobs)))
        if problem is not None:
            raise self._corrupt(problem, layer)
        return Values.of(blobs)

    def size_problem(self, block: StoredBlock) -> str | None:
        """Why a block is impossible by the sizes that Parquet states; None if it is possible. So no memory is taken for
        a shape that the file cannot fill, nor for pages that hold more than their rows can need."""
        column = self._data_column(block.row_group)
        rows, has_dictionary = self._group_rows[block.row_group], column.has_dictionary_page
        nbytes = block.header.data_nbytes
        if nbytes > column.total_uncompressed_size and not (
            has_dictionary and rows > 1
        ):  # equal values are stored once
            return f"data has at most {counted(column.total_uncompressed_size, 'byte')}, but needs {nbytes}"
        if rows == 1 and column.total_uncompressed_size > _page_nbytes(
            nbytes, 1, has_dictionary=has_dictionary
        ):
            return f"data has {counted(column.total_uncompressed_size, 'byte')}, but needs {nbytes}"
        return None

    def data_range(self, block: StoredBlock) -> StoredRange:
        """Where in the object the pages are that hold the block's data (and the data of its whole row group)."""
        column = self._data_column(block.row_group)
        return StoredRange(pages_start(column), column.total_compressed_size, block.header.data_nbytes)

    def _small_columns(self, reader: BinaryIO, schema: pa.Schema) -> dict[str, list[Any]]:
        """The values of the small columns. Texts are read as a dictionary and indices, so that repeated texts take no
        more memory than they do in the file."""
        columns = [column for column in HEADER_COLUMNS if column.name in self._names]
        guarded = GuardedReader(reader)
        guarded.limit(small_columns(self._metadata, [column.name for column in columns]))
        texts = [
            column.name
            for column in columns
            if is_text(column.type) and is_text(schema.field(column.name).type)
        ]
        file = pq.ParquetFile(
            guarded, metadata=self._metadata, read_dictionary=texts, page_checksum_verification=True
        )
        if sum(self._group_rows) <= _FEW_ROWS:  # a call takes longer than the reading itself
            table = file.read(columns=[column.name for column in columns], use_threads=False)
            return {column.name: self._plain(table, column) for column in columns}
        return {
            column.name: self._plain(file.read(columns=[column.name], use_threads=False), column)
            for column in columns
        }

    def _data_column(self, group: int) -> Any:
        return self._metadata.row_group(group).column(self._data_index)

    def _row(self, block: StoredBlock, counter: ReadCounter) -> pa.RecordBatch | None:
        group = block.row_group
        if self._group_rows[group] == 1:
            return next(self._rows(group, counter), None)
        return self._kept.row((self._path, group), block.row_in_group, lambda: self._rows(group, counter))

    def _rows(self, group: int, counter: ReadCounter) -> Iterator[pa.RecordBatch]:
        """The blobs of a row group's rows, one at a time."""
        columns = self._metadata.row_group(group)
        counter.add(sum(columns.column(i).total_compressed_size for i in range(columns.num_columns)))
        names = [name for name in BLOB_NAMES if name in self._names]
        with self._translated(), self._store.open_reader(self._path) as reader:
            guarded = GuardedReader(reader)
            guarded.limit(self._page_limits(group))
            file = pq.ParquetFile(
                guarded,
                metadata=self._metadata,
                page_checksum_verification=True,
                pre_buffer=False,
                buffer_size=READ_BUFFER_NBYTES,
            )
            yield from file.iter_batches(1, row_groups=[group], columns=names, use_threads=False)

    def _page_limits(self, group: int) -> list[PageLimit]:
        """Limits on the pages of a row group, by what the headers say its rows need. Raises CorruptWeights if a row is
        impossible."""
        first = sum(self._group_rows[:group])
        rows = [block.header for block in self.blocks[first : first + self._group_rows[group]]]
        for row in rows:
            problem = row_problem(row)
            if problem is not None:
                raise self._corrupt(problem, row.layer_name)
        need = {
            "data": sum(row.data_nbytes for row in rows),
            "scales": sum(4 * row.scale_count for row in rows),
            "zero_points": sum(4 * row.scale_count for row in rows),
            "chunk_digests": sum(row.digests_nbytes for row in rows),
        }
        columns = self._metadata.row_group(group)
        limits = []
        for column in map(columns.column, range(columns.num_columns)):
            nbytes = need.get(column.path_in_schema)
            if nbytes is not None:
                most = _page_nbytes(nbytes, len(rows), has_dictionary=column.has_dictionary_page)
                limits.append(PageLimit.of(column, most, len(rows)))
        return limits

    def _nbytes(self, group: int) -> int:
        """Memory for decoding a row group: the stored pages, and twice their content."""
        columns = self._metadata.row_group(group)
        chunks = [columns.column(i) for i in range(columns.num_columns)]
        return sum(chunk.total_compressed_size + 2 * chunk.total_uncompressed_size for chunk in chunks)

    def _schema_version(self, schema: pa.Schema) -> str:
        missing = [name for name in V1_SCHEMA.names if name not in schema.names]
        if len(missing) == len(V1_SCHEMA.names):
            message = "this Parquet file has none of a dataset's columns; give the target of a run"
            raise NotFound(message, uri=self._store.url(self._path))
        if missing:
            raise self._corrupt(f"not a V1 or V2 file, the column {missing[0]!r} is missing")
        is_v1 = not any(column.name in schema.names for column in COLUMNS if column.since == "2")
        default = b"1" if is_v1 else b"2"
        version: str = (schema.metadata or {}).get(VERSION_KEY.encode(), default).decode("utf-8", "replace")
        if version not in {"1", "2"}:
            raise self._corrupt(f"schema version {version!r} is not known; a newer release may read it")
        return version

    def _known_names(self, schema: pa.Schema) -> frozenset[str]:
        """The columns to read: those of the version, which must be present, and optional ones that are present."""
        names = set()
        for column in COLUMNS:
            name = column.name
            if column.since is not None and column.since > self.version:
                continue
            if name not in schema.names:
                if column.since is None:
                    continue
                raise self._corrupt(f"the column {name!r} of V{self.version} is missing")
            if isinstance(column, BlobColumn) and not _is_binary(schema.field(name).type):
                raise self._corrupt(f"the column {name!r} is {schema.field(name).type}, not binary")
            names.add(name)
        return frozenset(names)

    def _plain(self, table: pa.Table, column: SmallColumn) -> list[Any]:
        name, stored = column.name, table[column.name]
        try:
            if pa.types.is_dictionary(stored.type):
                values: list[Any] = texts_of(stored)
            else:
                values = stored.cast(column.wide_type).to_pylist()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise self._corrupt(f"the column {name!r} is {stored.type}, not {column.wide_type}") from error
        if len(values) != sum(self._group_rows):
            raise self._corrupt(
                f"the column {name!r} has {len(values)} of {counted(sum(self._group_rows), 'value')}"
            )
        if any(value is None or (isinstance(value, list) and None in value) for value in values):
            raise self._corrupt(f"the column {name!r} has nulls")
        return values

    def _blocks(self, small: dict[str, list[Any]]) -> Iterator[StoredBlock]:
        dtypes = [
            dtype.removeprefix("torch.") for dtype in small["dtype"]
        ]  # some V1 files have str(tensor.dtype)
        places = [(group, row) for group, rows in enumerate(self._group_rows) for row in range(rows)]
        headers = headers_of({**small, "dtype": dtypes}, len(places))
        for (group, row), header in zip(places, headers, strict=True):
            if self.version != "1" and not header.checksum:
                raise self._corrupt("its checksum is missing", header.layer_name)
            yield StoredBlock(header, self._path, group, row)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (
            pa.ArrowException,
            OSError,
            EOFError,
            ValueError,
            MemoryError,
        ) as error:  # a damaged file may raise any of these
            raise self._corrupt(f"Parquet cannot read it ({error})") from error

    def _corrupt(self, problem: str, layer: str | None = None) -> CorruptWeights:
        message = f"{problem}; fetch the object again or quantize again"
        return CorruptWeights(message, layer=layer, uri=self._store.url(self._path))


def _page_nbytes(nbytes: int, rows: int, *, has_dictionary: bool) -> int:
    """Upper bound of the size of a column's pages for `nbytes` of values in so many rows. With a dictionary it is twice
    as much, because writers may have given the dictionary up halfway."""
    return nbytes * (2 if has_dictionary else 1) + _SPARE_NBYTES + _SPARE_ROW_NBYTES * rows


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _blob(column: pa.Array) -> np.ndarray:
    """The only value of a binary column, uint8, copied from Arrow's buffers."""
    _, offsets, data = column.buffers()
    width = np.int64 if pa.types.is_large_binary(column.type) else np.int32
    start, stop = np.frombuffer(offsets, width)[column.offset :][:2]
    return np.frombuffer(data, np.uint8)[start:stop].copy() if stop > start else np.empty(0, np.uint8)
