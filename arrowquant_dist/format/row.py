"""A V2 row: its columns, fields and blobs, and what can be wrong with it. Everything else is derived from here.

To add a column, add a line to COLUMNS and a field to RowHeader or Blobs. Parts, the index, commits and all readers then
have it: code that makes a row gives it a value, and code that needs the value takes it from the header or the blobs.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import repeat, starmap
from operator import attrgetter
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import pyarrow as pa

from arrowquant_dist.config import BITS
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.errors import counted
from arrowquant_dist.format.digests import CHUNK_NBYTES, DIGEST_NBYTES
from arrowquant_dist.tensor import row_nbytes

MAX_NBYTES = 1 << 62
STORED_TYPES = frozenset({*BITS, "fp16", "none"})

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a part file.

    name: name of the column. type: its Arrow type in a part. since: the first schema version whose files all have it;
    None for a column that any file may lack, which then has its default, or empty values.
    """

    name: str
    type: pa.DataType
    since: Literal["1", "2"] | None = "2"

    @property
    def field(self) -> pa.Field:
        return pa.field(self.name, self.type, nullable=False)


@dataclass(frozen=True, slots=True)
class SmallColumn(Column):
    """A column of RowHeader: stored plain in parts, and a column of the index.

    default: value in rows of a file that lacks the column. index_type: Arrow type in the index, if it differs.
    has_statistics: whether row groups have its minimum and maximum, because queries filter by it and engines then skip
    row groups. repeats: whether a few strings occur in many rows.
    """

    default: Any = None
    index_type: pa.DataType | None = None
    has_statistics: bool = False
    repeats: bool = False

    @property
    def index_field(self) -> pa.Field:
        return pa.field(self.name, self.index_type or self.type, nullable=False)

    @property
    def wide_type(self) -> pa.DataType:
        """The Arrow type to which any writer's column of this kind can be cast."""
        if pa.types.is_list(self.type):
            return pa.list_(pa.int64())
        return pa.int64() if pa.types.is_integer(self.type) else self.type


@dataclass(frozen=True, slots=True)
class BlobColumn(Column):
    """A column of Blobs: one page per value in parts, and a byte range in the index. dtype: numpy dtype of a value's
    elements."""

    dtype: str = "u1"


# In the order of a file.
COLUMNS: tuple[SmallColumn | BlobColumn, ...] = (
    SmallColumn("layer_name", pa.string(), since="1", has_statistics=True),
    SmallColumn("shape", pa.list_(pa.int32()), since="1", index_type=pa.list_(pa.int64())),
    SmallColumn("dtype", pa.string(), since="1", repeats=True),
    BlobColumn("data", pa.large_binary(), since="1"),
    SmallColumn("num_params", pa.int64(), since="1"),
    SmallColumn("quant_type", pa.string(), default="none", repeats=True),
    BlobColumn("scales", pa.binary(), dtype="<f4"),
    BlobColumn("zero_points", pa.binary(), dtype="<f4"),
    SmallColumn("quant_axis", pa.int32(), default=-1),
    SmallColumn("group_size", pa.int32(), default=0),
    SmallColumn("layer_shape", pa.list_(pa.int64())),  # default: the row's own shape
    SmallColumn("row_dims", pa.int32(), default=1),
    SmallColumn("row_start", pa.int64(), default=0, has_statistics=True),
    BlobColumn("chunk_digests", pa.binary()),
    SmallColumn("checksum", pa.string(), default=""),
)


@dataclass(frozen=True, slots=True)
class RowHeader:
    """The small columns of a row, which holds rows [row_start, row_stop) of a layer seen as [rows, columns].

    README.md describes each column. They are in the order of the index. checksum: "" in V1.
    """

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
    checksum: str

    @property
    def is_whole(self) -> bool:
        return self.row_start == 0 and self.shape == self.layer_shape

    @property
    def own_row_dims(self) -> int:
        """Number of leading dimensions of `shape` that make up the rows: 1 for a block of fused experts."""
        return self.row_dims if self.is_whole else 1

    @property
    def rows(self) -> int:
        return math.prod(self.shape[: self.own_row_dims])

    @property
    def row_stop(self) -> int:
        return self.row_start + self.rows

    @property
    def columns(self) -> int:
        return math.prod(self.layer_shape[self.row_dims :])

    @property
    def row_nbytes(self) -> int:
        """Bytes of one row in `data`; each row starts on a byte boundary."""
        return row_nbytes(self.quant_type, self.columns, self.dtype)

    @property
    def data_nbytes(self) -> int:
        return self.rows * self.row_nbytes

    @property
    def groups_per_row(self) -> int:
        """Number of scales per row; 0 if the block has one scale for all rows, or none."""
        if self.quant_type not in BITS or self.quant_axis != 0:
            return 0
        return -(-self.columns // self.group_size) if self.group_size else 1

    @property
    def scale_count(self) -> int:
        if self.quant_type not in BITS:
            return 0
        return self.rows * self.groups_per_row if self.quant_axis == 0 else 1

    @property
    def digests_nbytes(self) -> int:
        return DIGEST_NBYTES * -(-self.data_nbytes // CHUNK_NBYTES) if self.checksum else 0


@dataclass(frozen=True, slots=True, eq=False)
class Blobs(Generic[T]):
    """One item for each of a row's large values: its array, its size or its place. Iterates in the order of a file."""

    data: T
    scales: T
    zero_points: T
    chunk_digests: T

    def __iter__(self) -> Iterator[T]:
        return iter(_VALUES(self))


_SMALL = {column.name: column for column in COLUMNS if isinstance(column, SmallColumn)}
_BLOBS = {column.name: column for column in COLUMNS if isinstance(column, BlobColumn)}
HEADER_COLUMNS = tuple(_SMALL[field.name] for field in fields(RowHeader))
BLOB_COLUMNS = tuple(_BLOBS[field.name] for field in fields(Blobs))
HEADER_NAMES = tuple(column.name for column in HEADER_COLUMNS)
BLOB_NAMES = tuple(column.name for column in BLOB_COLUMNS)
_VALUES = attrgetter(*BLOB_NAMES)


@dataclass(frozen=True, slots=True, eq=False)
class StoredRow:
    """One row of a V2 dataset: a layer, or a row block of a layer.

    header: the small columns. blobs: data is uint8 [nbytes], packed codes or raw little-endian values. scales and
    zero_points are float32, flattened from [rows, groups per row]; zero_points is empty if symmetric, both are empty if
    nothing is quantized. chunk_digests is uint8.
    """

    header: RowHeader
    blobs: Blobs[np.ndarray]


def headers_of(columns: Mapping[str, Iterable[Any]], count: int) -> Iterator[RowHeader]:
    """The headers of `count` rows from the values of their small columns, as Arrow or JSON give them.

    A missing column has its default; layer_name, shape, dtype and num_params must be present. Raises ValueError if a
    column does not have `count` values. Equal shapes, and equal strings in columns that repeat, are the same object,
    because a driver keeps the headers of all rows.
    """
    if "layer_shape" not in columns:
        columns = {**columns, "layer_shape": columns["shape"]}
    values = [
        as_held(columns[column.name]) if column.name in columns else repeat(column.default, count)
        for column, as_held in _AS_HELD
    ]
    return starmap(RowHeader, zip(*values, strict=True))


def _tuples(values: Iterable[Iterable[int]]) -> Iterator[tuple[int, ...]]:
    return map(_one_tuple, map(tuple, values))


@lru_cache(maxsize=4096)
def _one_tuple(values: tuple[int, ...]) -> tuple[int, ...]:
    """In most cases an equal tuple that exists already."""
    return values


def _strings(values: Iterable[str]) -> Iterator[str]:
    return map(sys.intern, values)


_AS_HELD: tuple[tuple[SmallColumn, Callable[[Any], Iterable[Any]]], ...] = tuple(
    (column, _tuples if pa.types.is_list(column.type) else _strings if column.repeats else iter)
    for column in HEADER_COLUMNS
)


def row_problem(row: RowHeader) -> str | None:
    """Why a row is impossible, checked before any memory is taken for its values; None if it is possible."""
    if row.dtype not in DTYPES:
        return f"dtype {row.dtype!r} is not known"
    if row.quant_type not in STORED_TYPES:
        return f"quant_type {row.quant_type!r} is not known"
    if row.quant_type != "none" and not DTYPES[row.dtype].is_float:
        return f"quant_type {row.quant_type!r} does not match dtype {row.dtype!r}"
    if min((*row.shape, *row.layer_shape, row.row_start, row.group_size), default=0) < 0:
        return "a dimension, row_start or group_size is negative"
    if not 1 <= row.row_dims <= max(1, len(row.layer_shape)):
        return f"row_dims {row.row_dims} does not fit the layer's shape {list(row.layer_shape)}"
    if math.prod(row.layer_shape) * DTYPES[row.dtype].itemsize > MAX_NBYTES:
        return f"shape {list(row.layer_shape)} is too large"
    problem = None if row.is_whole else _run_problem(row)
    if problem is not None:
        return problem
    if row.num_params != math.prod(row.shape):
        return f"num_params is {row.num_params}, which does not match shape {list(row.shape)}"
    if row.quant_axis not in {-1, 0} or (row.group_size > 0 and row.quant_axis != 0):
        return f"quant_axis {row.quant_axis} with group_size {row.group_size} is not a V2 layout"
    return None


def _run_problem(row: RowHeader) -> str | None:
    """Why a row that is a part of its layer is impossible; None if it is possible."""
    if row.shape[1:] != row.layer_shape[row.row_dims :]:
        return f"shape {list(row.shape)} is not a run of rows of {list(row.layer_shape)}"
    if not row.shape:
        return "a scalar cannot be a row block"
    if row.row_stop > math.prod(row.layer_shape[: row.row_dims]):
        return f"rows {row.row_start}-{row.row_stop} lie outside the layer, {list(row.layer_shape)}"
    return None


def sizes_problem(row: RowHeader, nbytes: Blobs[int]) -> str | None:
    """What is wrong with the sizes of a row's values; None if they are right. V1 has no digests."""
    data_nbytes = row.data_nbytes
    if nbytes.data != data_nbytes:
        return f"data has {counted(nbytes.data, 'byte')}, but shape and quant_type need {data_nbytes}"
    digests_nbytes = DIGEST_NBYTES * -(-data_nbytes // CHUNK_NBYTES) if row.checksum else 0
    if nbytes.chunk_digests != digests_nbytes:
        return (
            f"chunk_digests has {counted(nbytes.chunk_digests, 'byte')}, but the data needs {digests_nbytes}"
        )
    expected = 4 * row.scale_count
    if nbytes.scales != expected and not (row.num_params == 0 and nbytes.scales == 0):
        return f"scales has {counted(nbytes.scales, 'byte')}, but the groups need {expected}"
    if nbytes.zero_points not in {0, nbytes.scales}:
        return f"zero_points has {counted(nbytes.zero_points, 'byte')}, scales {nbytes.scales}"
    return None
