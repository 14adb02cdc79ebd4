"""format/README.md is true: its tables are the schemas, and its test vectors decode to what it says, in two ways."""

from __future__ import annotations

import json
import re
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

import arrowquant_dist.format
from arrowquant_dist.dataset.dataset import Dataset
from arrowquant_dist.dataset.ranges import read_values
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.format.digests import chunk_digests, row_checksum
from arrowquant_dist.format.record import BlobRanges, StoredRange
from arrowquant_dist.format.row import COLUMNS, RowHeader, headers_of
from arrowquant_dist.format.schema import V2_SCHEMA
from arrowquant_dist.storage.base import ByteRange
from arrowquant_dist.target.index import INDEX_SCHEMA
from tests.format.encoder import Row, bf16_bits, bf16_values, write_v2
from tests.target.targets import make_target

README = (Path(arrowquant_dist.format.__file__).parent / "README.md").read_text()
BLOBS = ("data", "scales", "zero_points", "chunk_digests")
BITS = {"int8": 8, "int4": 4, "int3": 3, "int2": 2}


def vectors(kind: str) -> list[dict[str, Any]]:
    found = re.findall(rf"^```json {kind}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return [json.loads(block) for block in found]


def table_after(heading: str) -> list[list[str]]:
    """The cells of the first table behind a heading, without its first two lines."""
    lines = README[README.index(f"{heading}\n") :].splitlines()
    first = next(i for i in count() if lines[i].startswith("|"))
    rows = takewhile(lambda line: line.startswith("|"), lines[first + 2 :])
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


ROWS = vectors("row")
IDS = [f"{vector['layer_name']}-{vector['quant_type']}-{vector['dtype']}" for vector in ROWS]


def arrow_name(kind: pa.DataType) -> str:
    return str(kind).replace("item: ", "").replace("element: ", "")


def test_the_columns_are_those_of_a_part(tmp_path: Path) -> None:
    table = table_after("## Columns")
    assert [(name.strip("`"), kind.strip("`")) for name, kind, *_ in table] == [
        (field.name, arrow_name(field.type)) for field in V2_SCHEMA
    ]
    assert [since for _, _, _, since, _ in table] == [column.since for column in COLUMNS]
    make_target(tmp_path, [[as_row(vector) for vector in ROWS]])
    [part] = (tmp_path / "weights").rglob("*.parquet")
    schema = pq.ParquetFile(part).schema
    for i, (name, _, physical, *_) in enumerate(table):
        column = schema.column(i)
        logical = " (String)" if column.logical_type.type == "STRING" else ""
        assert column.physical_type + logical == physical, name
        assert column.path in (name.strip("`"), f"{name.strip('`')}.list.element")


def test_the_index_is_as_it_says() -> None:
    said = [(name.strip("`"), kind) for name, kind, _ in table_after("### `index.parquet`")]
    null = {True: ", null", False: ""}
    assert said == [(f.name, f"`{arrow_name(f.type)}`{null[f.nullable]}") for f in INDEX_SCHEMA]
    assert (
        f"`arrowquant.index_version`: `{INDEX_SCHEMA.metadata[b'arrowquant.index_version'].decode()}`"
        in README
    )


def test_the_manifest_has_the_fields_that_it_says(tmp_path: Path) -> None:
    make_target(tmp_path, [[as_row(vector) for vector in ROWS]])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    kinds = {str: "string", int: "number", dict: "object", list: "array"}
    said = {name.strip("`"): kind for name, kind, _ in table_after("### `manifest.json`")}
    assert said == {name: kinds[type(value)] for name, value in manifest.items()}


def test_the_vectors_have_every_type_and_layout() -> None:
    assert {vector["quant_type"] for vector in ROWS} == {*BITS, "fp16", "none"}
    quantized = [vector for vector in ROWS if vector["quant_type"] in BITS]
    assert {bool(v["zero_points"]) for v in quantized} == {True, False}
    assert {(v["quant_axis"], v["group_size"] > 0) for v in quantized} == {(-1, False), (0, False), (0, True)}
    assert any(v["group_size"] and v["shape"][-1] % v["group_size"] for v in ROWS)
    assert any(v["shape"] != v["layer_shape"] for v in ROWS)


def as_row(vector: dict[str, Any]) -> Row:
    """A vector as the columns of a Parquet file."""
    blobs = {name: bytes.fromhex(vector[name]) for name in BLOBS}
    columns = {name: value for name, value in vector.items() if name not in ("codes", "decoded")}
    return Row(columns | blobs, np.asarray(vector["decoded"]))


# The decoder: from the README's words, in numpy, without the package.


def unpacked(data: bytes, rows: int, columns: int, bits: int) -> np.ndarray:
    """Codes q, int64 [rows, columns]."""
    if bits == 8:
        return np.frombuffer(data, np.int8).reshape(rows, columns).astype(np.int64)
    row_nbytes = -(-columns * bits // 8)
    packed = np.frombuffer(data, np.uint8).reshape(rows, row_nbytes)
    stream = np.unpackbits(packed, axis=1, bitorder="little")
    assert not stream[:, columns * bits :].any()  # left over
    unsigned = stream[:, : columns * bits].reshape(rows, columns, bits) @ (1 << np.arange(bits))
    return np.asarray(unsigned - (1 << (bits - 1)), np.int64)


def kept(data: bytes, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        return np.asarray(bf16_values(np.frombuffer(data, "<u2")))
    return np.frombuffer(data, np.dtype({"float32": "<f4", "float16": "<f2", "int64": "<i8"}[dtype]))


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values as `dtype` holds them; float32."""
    if dtype == "bfloat16":
        return np.asarray(bf16_values(bf16_bits(values)))
    if dtype == "float16":
        return np.asarray(np.clip(values, -65504, 65504).astype("<f2").astype("<f4"))
    return values


def decoded(vector: dict[str, Any]) -> tuple[np.ndarray | None, np.ndarray]:
    """Codes [rows, columns], None where nothing is quantized, and values in the row's shape."""
    data, quant_type = bytes.fromhex(vector["data"]), vector["quant_type"]
    if quant_type not in BITS:
        values = kept(data, "float16" if quant_type == "fp16" else vector["dtype"])
        return None, values.reshape(vector["shape"])
    columns = int(np.prod(vector["layer_shape"][vector["row_dims"] :]))
    rows = vector["num_params"] // columns
    q = unpacked(data, rows, columns, BITS[quant_type])
    scales = np.frombuffer(bytes.fromhex(vector["scales"]), "<f4")
    zero_points = np.frombuffer(bytes.fromhex(vector["zero_points"]), "<f4")
    which = np.zeros((rows, columns), int)
    if vector["quant_axis"] == 0:
        size = vector["group_size"] or columns
        which = np.arange(rows)[:, None] * -(-columns // size) + np.arange(columns) // size
    assert which.max() == scales.size - 1
    shifted = q.astype("<f4") - zero_points[which] if zero_points.size else q.astype("<f4")
    return q, rounded(shifted * scales[which], vector["dtype"]).reshape(vector["shape"])


@pytest.mark.parametrize("vector", ROWS, ids=IDS)
def test_a_vector_decodes_by_the_words_alone(vector: dict[str, Any]) -> None:
    codes, values = decoded(vector)
    assert (codes.tolist() if codes is not None else None) == vector.get("codes")
    assert values.tolist() == vector["decoded"]
    data, digests = (bytes.fromhex(vector[name]) for name in ("data", "chunk_digests"))
    assert digests == xxhash.xxh3_128(data).digest()  # canonical, one chunk
    small = digests + bytes.fromhex(vector["scales"]) + bytes.fromhex(vector["zero_points"])
    assert vector["checksum"] == f"xxh3_128:{xxhash.xxh3_128(small).hexdigest()}"


def header_of(vector: dict[str, Any]) -> RowHeader:
    [header] = headers_of({name: [value] for name, value in vector.items()}, 1)
    return header


@pytest.mark.parametrize("vector", ROWS, ids=IDS)
@pytest.mark.parametrize("indexed", [True, False])
def test_the_package_decodes_a_vector_to_the_same(
    tmp_path: Path, vector: dict[str, Any], indexed: Any
) -> None:
    """Through the index, and as a bare file. Its checksum is checked on the way."""
    header = header_of(vector)
    rows = [vector]
    if not header.is_whole:  # a reader wants the whole layer: the vector's rows, and zeros for those before
        rows = [before(vector), vector]
    if indexed:
        make_target(tmp_path, [[as_row(row) for row in rows]])
    else:
        write_v2(tmp_path / "part.parquet", [as_row(row) for row in rows])
    dataset = Dataset.open(str(tmp_path))
    block = dataset.layer(vector["layer_name"]).blocks[-1]
    assert block.header == header
    tensor = dataset.read_block(block)
    found = tensor.values()
    as_float = bf16_values(found) if vector["dtype"] == "bfloat16" else found
    assert as_float.tolist() == vector["decoded"]
    assert found.dtype == DTYPES[vector["dtype"]].bits


def before(vector: dict[str, Any]) -> dict[str, Any]:
    """The rows of the vector's layer before it: as many of its own."""
    assert vector["row_start"] == vector["shape"][0]
    return {**vector, "row_start": 0}


def test_digests_are_of_each_mebibyte() -> None:
    [vector] = vectors("digests")
    data = (np.arange(vector["nbytes"]) % vector["modulus"]).astype(np.uint8)
    chunks = [data[start : start + 2**20].tobytes() for start in range(0, data.size, 2**20)]
    digests = b"".join(xxhash.xxh3_128(chunk).digest() for chunk in chunks)
    assert len(chunks) == 2
    assert (digests.hex(), chunk_digests(data).hex()) == (vector["chunk_digests"],) * 2
    none = np.empty(0, np.float32)
    assert vector["checksum"] == f"xxh3_128:{xxhash.xxh3_128(digests).hexdigest()}"
    assert vector["checksum"] == row_checksum(digests, none, none)


def test_a_value_is_read_by_its_range_alone() -> None:
    [vector] = vectors("page")
    stored, value = bytes.fromhex(vector["stored"]), bytes.fromhex(vector["value"])
    assert len(stored) == vector["stored_nbytes"]
    page = pa.Codec("zstd").decompress(stored, vector["nbytes"] + 4, asbytes=True)
    assert page == len(value).to_bytes(4, "little") + value
    part = b"PAR1" + stored
    empty = StoredRange(0, 0, 0)
    ranges = BlobRanges(StoredRange(4, len(stored), len(value)), empty, empty, empty, vector["compression"])
    found = read_values(
        lambda where: np.frombuffer(part[where.start : where.stop], np.uint8),
        ranges,
        ByteRange(0, len(value)),
    )
    assert found.blobs.data.tobytes() == value
