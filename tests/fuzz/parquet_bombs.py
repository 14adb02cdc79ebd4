"""Small Parquet files that stand for gigabytes, written byte by byte where Arrow would not write them."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from arrowquant_dist.format.parquet import thrift

GIB = 1 << 30
_ZEROS = 100_000_000  # bytes in a page whose row needs four; refused like 2 GB, and made faster
V1 = pa.schema(
    [
        ("layer_name", pa.string()),
        ("shape", pa.list_(pa.int32())),
        ("dtype", pa.string()),
        ("data", pa.binary()),
        ("num_params", pa.int64()),
    ]
)
_LEAVES = [  # path, physical type (thrift), repetition, converted type, children
    ("layer_name", 6),
    ("shape", 1),
    ("dtype", 6),
    ("data", 6),
    ("num_params", 2),
]


def written(columns: dict[str, Any], **options: object) -> bytes:
    out = io.BytesIO()
    table = pa.table({field.name: pa.array(columns[field.name], field.type) for field in V1})
    pq.write_table(table, out, **{"compression": "zstd", **options})
    return out.getvalue()


def equal_values(rows: int, value: bytes, name: Callable[[int], str] = "layer{}".format) -> bytes:
    """V1 rows that share one value, which is stored once, in a dictionary."""
    return _of_dictionaries([name(i) for i in range(rows)], pa.array([value]), len(value))


def _of_dictionaries(names: list[str] | str, data: pa.Array, size: int) -> bytes:
    """Rows with one value, and perhaps one name, that are stored once in the file."""
    rows = 2000 if isinstance(names, str) else len(names)
    zeros = pa.array([0] * rows, pa.int32())
    name = pa.DictionaryArray.from_arrays(zeros, [names]) if isinstance(names, str) else pa.array(names)
    out = io.BytesIO()
    table = pa.table(
        {
            "layer_name": name,
            "shape": pa.array([[size]] * rows, pa.list_(pa.int32())),
            "dtype": ["uint8"] * rows,
            "data": pa.DictionaryArray.from_arrays(zeros, data),
            "num_params": [size] * rows,
        }
    )
    pq.write_table(table, out, compression="zstd", store_schema=False, dictionary_pagesize_limit=GIB)
    return out.getvalue()


def long_names(nbytes: int) -> bytes:
    """2,000 rows with one name of `nbytes` bytes."""
    return _of_dictionaries("n" * nbytes, pa.array([b"x"]), 1)


def zeros_in_one_value(nbytes: int, compression: str, claimed: int = 4) -> bytes:
    """A page that decompresses to far more than the shape of its row needs."""
    columns: dict[str, Any] = {
        "layer_name": ["w"],
        "shape": [[claimed]],
        "dtype": ["uint8"],
        "data": [bytes(nbytes)],
        "num_params": [claimed],
    }
    return written(columns, compression=compression, use_dictionary=False)


def zeros_in_a_name(nbytes: int, compression: str) -> bytes:
    columns: dict[str, Any] = {
        "layer_name": ["\0" * nbytes],
        "shape": [[1]],
        "dtype": ["uint8"],
        "data": [b"x"],
        "num_params": [1],
    }
    return written(columns, compression=compression, use_dictionary=False, write_statistics=False)


def long_shapes(dims: int) -> bytes:
    """A shape with many equal dimensions, as long as a run of the encoding can be."""
    columns: dict[str, Any] = {
        "layer_name": ["w"],
        "shape": [[1] * dims],
        "dtype": ["uint8"],
        "data": [b"x"],
        "num_params": [1],
    }
    return written(columns)


def _node(name: str, *, kind: int | None = None, children: int | None = None) -> bytes:
    fields = [thrift.i32(1, kind)] if kind is not None else []
    fields.append(thrift.i32(3, 0))
    fields.append(thrift.binary(4, name))
    if children is not None:
        fields.append(thrift.i32(5, children))
    return thrift.struct(*fields)


def _chunk(name: str, kind: int, start: int, stored: int, nbytes: int, values: int) -> bytes:
    metadata = thrift.struct(
        thrift.i32(1, kind),
        thrift.i32s(2, [0]),
        thrift.strings(3, [name]),
        thrift.i32(4, 0),
        thrift.i64(5, values),
        thrift.i64(6, nbytes),
        thrift.i64(7, stored),
        thrift.i64(9, start),
    )
    return thrift.struct(thrift.i64(2, start), thrift.nested(3, metadata))


def file_of(footer: bytes, pages: bytes = b"") -> bytes:
    return b"PAR1" + pages + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def _footer(nodes: list[bytes], rows: int, groups: list[bytes]) -> bytes:
    return thrift.struct(
        thrift.i32(1, 1), thrift.structs(2, nodes), thrift.i64(3, rows), thrift.structs(4, groups)
    )


def _flat_schema() -> list[bytes]:
    return [_node("schema", children=5), *(_node(name, kind=kind) for name, kind in _LEAVES)]


def many_rows(rows: int) -> bytes:
    group = thrift.struct(
        thrift.structs(1, [_chunk(name, kind, 4, 100, 100, rows) for name, kind in _LEAVES]),
        thrift.i64(2, 500),
        thrift.i64(3, rows),
    )
    return file_of(_footer(_flat_schema(), rows, [group]), bytes(500))


def many_row_groups(count: int) -> bytes:
    group = thrift.struct(thrift.structs(1, []), thrift.i64(2, 0), thrift.i64(3, 0))
    return file_of(_footer(_flat_schema(), 0, [group] * count))


def many_chunks(count: int) -> bytes:
    """One row group with very many columns, of 3 bytes each."""
    group = thrift.struct(
        thrift.structs(1, [thrift.struct(thrift.i64(2, 0))] * count), thrift.i64(2, 0), thrift.i64(3, 0)
    )
    return file_of(_footer(_flat_schema(), 0, [group]))


def deep_schema(depth: int) -> bytes:
    nodes = [_node("g", children=1)] * depth + [_node("leaf", kind=1)]
    return file_of(_footer(nodes, 0, []))


def wide_schema(count: int) -> bytes:
    return file_of(_footer([_node("schema", children=count), *[_node("c", kind=1)] * count], 0, []))


def deep_thrift(depth: int) -> bytes:
    """Nested structs, in a field that no reader knows."""
    return file_of(thrift.struct(thrift.i32(1, 1))[:-1] + b"\xbc" * depth)


def long_list(count: int) -> bytes:
    """A list that claims to have more elements than there are bytes."""
    return file_of(b"\x15\x02\x19\xfc" + thrift.varint(count) + bytes(100))


def _page(header_nbytes: int, values: int, content: bytes) -> bytes:
    header = thrift.struct(
        thrift.i32(1, 0),
        thrift.i32(2, header_nbytes),
        thrift.i32(3, len(content)),
        thrift.nested(
            5, thrift.struct(thrift.i32(1, values), thrift.i32(2, 0), thrift.i32(3, 3), thrift.i32(4, 3))
        ),
    )
    return header + content


def claimed_page(nbytes: int, values: int) -> bytes:
    """Pages whose headers claim a size of `nbytes` or a number of `values` that the footer does not."""
    pages, chunks = bytearray(), []
    for name, kind in _LEAVES:
        page = _page(nbytes, values, bytes(40))
        chunks.append(_chunk(name, kind, 4 + len(pages), len(page), len(page), 1))
        pages += page
    group = thrift.struct(thrift.structs(1, chunks), thrift.i64(2, len(pages)), thrift.i64(3, 1))
    return file_of(_footer(_flat_schema(), 1, [group]), bytes(pages))


BOMBS: dict[str, Callable[[], bytes]] = {
    "20 GB of equal values": lambda: equal_values(2000, bytes(10_000_000)),
    "a name of 10 MB in 2,000 rows": lambda: long_names(10_000_000),
    "a name of 100 KB in 2,000 rows": lambda: long_names(100_000),
    "zeros in zstd": lambda: zeros_in_one_value(_ZEROS, "zstd"),
    "zeros in gzip": lambda: zeros_in_one_value(_ZEROS, "gzip"),
    "zeros in brotli": lambda: zeros_in_one_value(_ZEROS, "brotli"),
    "zeros in snappy": lambda: zeros_in_one_value(_ZEROS, "snappy"),
    "a name of zeros in zstd": lambda: zeros_in_a_name(_ZEROS, "zstd"),
    "a name of zeros in gzip": lambda: zeros_in_a_name(_ZEROS, "gzip"),
    "a shape of 10 million dimensions": lambda: long_shapes(10_000_000),
    "a trillion rows": lambda: many_rows(10**12),
    "a billion rows": lambda: many_rows(10**9),
    "a negative number of rows": lambda: many_rows(-1),
    "4 million row groups": lambda: many_row_groups(4_000_000),
    "9 million columns in a row group": lambda: many_chunks(9_000_000),
    "a schema 1 million deep": lambda: deep_schema(1_000_000),
    "a schema 100 deep": lambda: deep_schema(100),
    "a million columns": lambda: wide_schema(1_000_000),
    "thrift 1 million deep": lambda: deep_thrift(1_000_000),
    "a list without end": lambda: long_list(2**31 - 1),
    "a list far beyond 64 bits": lambda: long_list(2**80),
    "pages of 2 GB": lambda: claimed_page(2**31 - 1, 1),
    "pages of 2 billion values": lambda: claimed_page(100, 2**31 - 1),
    "pages of a negative size": lambda: claimed_page(-5, 1),
    "pages of a negative number of values": lambda: claimed_page(100, -5),
}
