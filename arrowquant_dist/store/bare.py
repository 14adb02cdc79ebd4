"""V1 and V2 Parquet files as they are, without an index: small columns at open, values through pyarrow."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from arrowquant_dist.errors import CorruptWeights
from arrowquant_dist.store.files import ByteRange, Store
from arrowquant_dist.store.layers import StoredBlock, sizes_problem
from arrowquant_dist.store.schema import V1_SCHEMA, V2_SCHEMA
from arrowquant_dist.store.values import Values

VERSION_KEY = b"arrowquant.schema_version"
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
    """The last row group of several rows, decoded: its next row is likely to be read next. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: tuple[str, int] | None = None
        self._table: pa.Table | None = None

    def get(self, key: tuple[str, int], decode: Callable[[], pa.Table]) -> pa.Table:
        with self._lock:
            if self._key != key:
                self._key = self._table = None  # before the next one is decoded, not after
                self._table = decode()
                self._key = key
            return self._table


class BareFile:
    """One Parquet file. Reading a value decodes its whole row group; one of several rows goes into `kept`.

    version: `1` or `2`. blocks: its rows, unchecked (see layers.group_layers). kept_nbytes: the most memory
    that its row groups take in `kept`. Raises CorruptWeights for what is not V1 or V2.
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
        table = self._row_group(block.row_group, counter)
        blobs = {name: _blob(table[name], block.row_in_group) for name in table.column_names}
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

    def _row_group(self, group: int, counter: ReadCounter) -> pa.Table:
        if self._group_rows[group] == 1:
            return self._decode(group, counter)
        return self._kept.get((self._path, group), lambda: self._decode(group, counter))

    def _decode(self, group: int, counter: ReadCounter) -> pa.Table:
        columns = self._metadata.row_group(group)
        counter.add(sum(columns.column(i).total_compressed_size for i in range(columns.num_columns)))
        columns = [name for name in BLOBS if name in V1_SCHEMA.names or self.version == "2"]
        with self._translated(), self._store.open_reader(self._path) as reader:
            file = pq.ParquetFile(reader, metadata=self._metadata, page_checksum_verification=True)
            return file.read_row_group(group, columns=columns, use_threads=False)

    def _nbytes(self, group: int) -> int:
        columns = self._metadata.row_group(group)
        return sum(columns.column(i).total_uncompressed_size for i in range(columns.num_columns))

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


def _blob(column: pa.ChunkedArray, row: int) -> np.ndarray:
    """Value `row` of a binary column, uint8, copied out of Arrow's memory through its buffers."""
    for chunk in column.chunks:
        if row < len(chunk):
            _, offsets, data = chunk.buffers()
            width = np.int64 if pa.types.is_large_binary(chunk.type) else np.int32
            start, stop = np.frombuffer(offsets, width)[chunk.offset + row :][:2]
            return np.frombuffer(data, np.uint8)[start:stop].copy() if stop > start else np.empty(0, np.uint8)
        row -= len(chunk)
    raise IndexError(row)
