"""V1 and V2 Parquet files as they are, without an index: small columns at open, values through pyarrow."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from arrowquant_dist.dataset.layers import StoredBlock, sizes_problem
from arrowquant_dist.dataset.values import Values
from arrowquant_dist.errors import CorruptWeights
from arrowquant_dist.format.schema import V1_SCHEMA, V2_SCHEMA
from arrowquant_dist.storage.base import ByteRange, Store

VERSION_KEY = b"arrowquant.schema_version"
READ_BUFFER_NBYTES = 1 << 20
BLOBS = ("data", "scales", "zero_points", "chunk_digests")
_SMALL = {
    "layer_name": pa.string(),
    "shape": pa.list_(pa.int64()),
    "dtype": pa.string(),
    "num_params": pa.int64(),
    "quant_type": pa.string(),
    "quant_axis": pa.int64(),
    "group_size": pa.int64(),
    "layer_shape": pa.list_(pa.int64()),
    "row_dims": pa.int64(),
    "row_start": pa.int64(),
    "checksum": pa.string(),
}


class ReadCounter:
    """Bytes asked of the store. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.nbytes = 0

    def add(self, nbytes: int) -> None:
        with self._lock:
            self.nbytes += nbytes


class KeptGroup:
    """The row group that was read last, open after that row: the next one is likely to follow. Thread-safe.

    Row by row, since a whole row group, decoded at once, takes up to five times its size.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: tuple[str, int] | None = None
        self._rows: Iterator[pa.RecordBatch] = iter(())
        self._next = 0

    def row(self, key: tuple[str, int], row: int, start: Callable[[], Iterator[pa.RecordBatch]]) -> Any:
        """Row `row` of the row group `key`, whose rows `start` gives from the first on. None if it has fewer."""
        with self._lock:
            if self._key != key or row < self._next:
                self._key, self._rows = None, iter(())  # the old one's memory goes before the new one's comes
                self._key, self._rows, self._next = key, start(), 0
            found = None
            while self._next <= row:
                found = next(self._rows, None)
                self._next += 1
            return found


class BareFile:
    """One Parquet file. A row group of several rows is read from its first on, so best in their order.

    version: `1` or `2`. blocks: its rows, unchecked (see layers.group_layers). kept_nbytes: the most memory
    that such a row group takes in `kept`. Raises CorruptWeights for what is not V1 or V2.
    """

    def __init__(self, store: Store, path: str, kept: KeptGroup) -> None:
        self._store, self._path, self._kept = store, path, kept
        with self._translated(), store.open_reader(path) as reader:
            file = pq.ParquetFile(reader, page_checksum_verification=True)
            self._metadata = file.metadata
            self.version = self._schema_version(file.schema_arrow)
            leaves = [file.schema.column(i).path for i in range(len(file.schema.names))]
            self._data_index = leaves.index("data")
            groups = range(self._metadata.num_row_groups)
            self._group_rows = [self._metadata.row_group(group).num_rows for group in groups]
            names = [name for name in _SMALL if name in V1_SCHEMA.names or self.version == "2"]
            small = {name: self._plain(file.read(columns=[name]), name) for name in names}
        self.kept_nbytes = max((self._nbytes(g) for g in groups if self._group_rows[g] > 1), default=0)
        self.blocks = tuple(self._blocks(small))

    def read(self, block: StoredBlock, counter: ReadCounter) -> Values:
        """The block's values, as the caller's own memory. CorruptWeights where Parquet cannot decode them."""
        batch = self._row(block, counter)
        if batch is None:
            raise self._corrupt("its row group has fewer rows than it says", block.layer_name)
        blobs = {name: _blob(batch[name]) for name in batch.schema.names}
        data, scales, zero_points, digests = (blobs.get(name, np.empty(0, np.uint8)) for name in BLOBS)
        problem = sizes_problem(block, data.size, scales.size, zero_points.size, digests.size)
        if problem is not None:
            raise self._corrupt(problem, block.layer_name)
        return Values(data, scales.view("<f4"), zero_points.view("<f4"), digests.tobytes())

    def size_problem(self, block: StoredBlock) -> str | None:
        """What Parquet's own sizes rule out: no memory is taken for a shape that its file cannot fill."""
        column = self._data_column(block.row_group)
        if column.has_dictionary_page and self._group_rows[block.row_group] > 1:  # equal ones are stored once
            return None
        if block.data_nbytes > column.total_uncompressed_size:
            return f"data has at most {column.total_uncompressed_size} bytes, but needs {block.data_nbytes}"
        return None

    def data_range(self, block: StoredBlock) -> ByteRange:
        """Where in the object the pages lie that hold the block's data (and that of its row group)."""
        column = self._data_column(block.row_group)
        start = min(filter(None, (column.dictionary_page_offset, column.data_page_offset)), default=0)
        return ByteRange(start, start + column.total_compressed_size)

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
        names = [name for name in BLOBS if name in V1_SCHEMA.names or self.version == "2"]
        with self._translated(), self._store.open_reader(self._path) as reader:
            file = pq.ParquetFile(
                reader,
                metadata=self._metadata,
                page_checksum_verification=True,
                pre_buffer=False,
                buffer_size=READ_BUFFER_NBYTES,
            )
            yield from file.iter_batches(1, row_groups=[group], columns=names, use_threads=False)

    def _nbytes(self, group: int) -> int:
        """Memory that decoding a row group takes: a stored page, and twice what is in it."""
        columns = self._metadata.row_group(group)
        chunks = [columns.column(i) for i in range(columns.num_columns)]
        return sum(chunk.total_compressed_size + 2 * chunk.total_uncompressed_size for chunk in chunks)

    def _schema_version(self, schema: pa.Schema) -> str:
        missing = [name for name in V1_SCHEMA.names if name not in schema.names]
        if missing:
            raise self._corrupt(f"not a V1 or V2 file, the column {missing[0]!r} is missing")
        is_v1 = not any(name in schema.names for name in V2_SCHEMA.names if name not in V1_SCHEMA.names)
        version: str = (
            (schema.metadata or {}).get(VERSION_KEY, b"1" if is_v1 else b"2").decode("utf-8", "replace")
        )
        if version not in {"1", "2"}:
            raise self._corrupt(f"schema version {version!r} is not known; a newer release may read it")
        wanted = V1_SCHEMA if version == "1" else V2_SCHEMA
        for name in wanted.names:
            if name not in schema.names:
                raise self._corrupt(f"the column {name!r} of V{version} is missing")
            if name in BLOBS and not _is_binary(schema.field(name).type):
                raise self._corrupt(f"the column {name!r} is {schema.field(name).type}, not binary")
        return version

    def _plain(self, table: pa.Table, name: str) -> list[Any]:
        column = table[name]
        try:
            values: list[Any] = column.cast(_SMALL[name]).to_pylist()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise self._corrupt(f"the column {name!r} is {column.type}, not {_SMALL[name]}") from error
        if len(values) != sum(self._group_rows):
            raise self._corrupt(f"the column {name!r} has {len(values)} of {sum(self._group_rows)} values")
        if any(value is None or (isinstance(value, list) and None in value) for value in values):
            raise self._corrupt(f"the column {name!r} has nulls")
        return values

    def _blocks(self, small: dict[str, list[Any]]) -> Iterator[StoredBlock]:
        places = [(group, row) for group, rows in enumerate(self._group_rows) for row in range(rows)]
        for i, (group, row) in enumerate(places):
            of = {name: values[i] for name, values in small.items()}
            shape = tuple(of["shape"])
            yield StoredBlock(
                layer_name=of["layer_name"],
                path=self._path,
                row_group=group,
                row_in_group=row,
                shape=shape,
                layer_shape=tuple(of.get("layer_shape", shape)),
                row_dims=of.get("row_dims", 1),
                row_start=of.get("row_start", 0),
                dtype=of["dtype"].removeprefix("torch."),  # as str(tensor.dtype) spells it in some V1 files
                quant_type=of.get("quant_type", "none"),
                quant_axis=of.get("quant_axis", -1),
                group_size=of.get("group_size", 0),
                num_params=of["num_params"],
                checksum=of.get("checksum", ""),
            )

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
        ) as error:  # damage looks like any
            raise self._corrupt(f"Parquet cannot read it ({error})") from error

    def _corrupt(self, problem: str, layer: str | None = None) -> CorruptWeights:
        message = f"{problem}; fetch the object again or quantize anew"
        return CorruptWeights(message, layer=layer, uri=self._store.url(self._path))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _blob(column: pa.Array) -> np.ndarray:
    """The only value of a binary column, uint8, copied out of Arrow's memory through its buffers."""
    _, offsets, data = column.buffers()
    width = np.int64 if pa.types.is_large_binary(column.type) else np.int32
    start, stop = np.frombuffer(offsets, width)[column.offset :][:2]
    return np.frombuffer(data, np.uint8)[start:stop].copy() if stop > start else np.empty(0, np.uint8)
