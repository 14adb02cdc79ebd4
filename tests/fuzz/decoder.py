"""Decodes datasets as format/README.md describes them, with pyarrow and numpy alone, to compare the package with.

It reads rows in two ways: through Parquet (`read_dataset`), and by the ranges of any index (`checked_by_ranges`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from tests.format.encoder import BITS, bf16_bits, bf16_values

_CHUNK_NBYTES = 1 << 20
_NUMPY = {
    "float64": "<f8",
    "float32": "<f4",
    "float16": "<f2",
    "bfloat16": "<u2",
    "bool": "u1",
    **dict.fromkeys(("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float4_e2m1fn_x2"), "u1"),
    **{f"{sign}int{bits}": f"<{sign or 'i'}{bits // 8}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
_LARGEST = {"float16": 65504.0, "bfloat16": float(np.uint32(0x7F7F0000).view(np.float32))}


def bits_dtype(dtype: str) -> np.dtype[Any]:
    """The numpy dtype that holds the bits of a value."""
    return np.dtype(_NUMPY[dtype])


@dataclass(frozen=True, slots=True)
class Block:
    """A row of the dataset.

    row_start: its first row. rows: number of rows. bits: its values in the layer's dtype, as bits, in C order. codes,
    scales, zero_points: those of each value, float64 [rows, columns]. groups: index of the scale of each value. These
    four are None if nothing is quantized.
    """

    row_start: int
    rows: int
    quant_type: str
    bits: np.ndarray
    codes: np.ndarray | None = None
    scales: np.ndarray | None = None
    zero_points: np.ndarray | None = None
    groups: np.ndarray | None = None
    is_symmetric: bool = True


@dataclass(frozen=True, slots=True)
class DecodedLayer:
    """A layer.

    shape: shape of the whole layer. columns: columns of its matrix. blocks: its row blocks, by their first row.
    """

    shape: tuple[int, ...]
    dtype: str
    columns: int
    blocks: list[Block] = field(default_factory=list)

    def bits(self) -> bytes:
        return b"".join(block.bits.tobytes() for block in self.blocks)


def read_dataset(root: Path) -> dict[str, DecodedLayer]:
    """{name: layer} of the dataset, including aliases. Raises AssertionError if rows are missing, overlap, or are not
    what was written."""
    manifest = json.loads((root / "manifest.json").read_bytes())
    rows: list[dict[str, Any]] = []
    for part in manifest["parts"]:
        data = (root / part["path"]).read_bytes()
        assert (len(data), hash_of(data)) == (part["nbytes"], part["hash"])
        found = pq.read_table(pa.BufferReader(data)).to_pylist()
        assert len(found) == part["rows"]
        rows += found
    layers = assembled(rows)
    for alias, name in manifest["aliases"].items():
        assert alias not in layers
        layers[alias] = layers[name]
    return layers


def assembled(rows: list[dict[str, Any]]) -> dict[str, DecodedLayer]:
    """The layers of these rows. Raises AssertionError if their blocks have gaps or overlap."""
    layers: dict[str, DecodedLayer] = {}
    for row in sorted(rows, key=lambda row: (row["layer_name"], row["row_start"])):
        check_row(row)
        shape, dims = tuple(row["layer_shape"]), row["row_dims"]
        known = DecodedLayer(shape, row["dtype"], math.prod(shape[dims:]))
        layer = layers.setdefault(row["layer_name"], known)
        assert (layer.shape, layer.dtype, layer.columns) == (known.shape, known.dtype, known.columns)
        expected = sum(block.rows for block in layer.blocks)
        assert row["row_start"] == expected, (row["layer_name"], row["row_start"], expected)
        layer.blocks.append(_block(row, layer.columns))
    for name, layer in layers.items():
        rows_there = sum(block.rows for block in layer.blocks)
        assert rows_there * layer.columns == math.prod(layer.shape), name
    return layers


def check_row(row: Mapping[str, Any]) -> None:
    """Asserts that digests and checksum are those of the row's bytes."""
    data = row["data"]
    digests = b"".join(
        xxhash.xxh3_128_digest(data[i : i + _CHUNK_NBYTES]) for i in range(0, len(data), _CHUNK_NBYTES)
    )
    assert digests == row["chunk_digests"], row["layer_name"]
    small = digests + row["scales"] + row["zero_points"]
    assert row["checksum"] == f"xxh3_128:{xxhash.xxh3_128_hexdigest(small)}", row["layer_name"]


def _block(row: Mapping[str, Any], columns: int) -> Block:
    dims = row["row_dims"]
    whole = row["shape"] == row["layer_shape"] and not row["row_start"]
    rows = math.prod(row["layer_shape"][:dims]) if whole else row["shape"][0]
    assert row["num_params"] == rows * columns == math.prod(row["shape"])
    quant_type, dtype = row["quant_type"], row["dtype"]
    if quant_type == "none":
        bits = np.frombuffer(row["data"], bits_dtype(dtype))
    elif quant_type == "fp16":
        half = np.frombuffer(row["data"], "<f2").astype(np.float32)
        bits = half.astype(bits_dtype(dtype)) if dtype != "bfloat16" else rounded(half, dtype)
    else:
        return _quantized(row, rows, columns)
    assert bits.size == rows * columns
    return Block(row["row_start"], rows, quant_type, bits)


def _quantized(row: Mapping[str, Any], rows: int, columns: int) -> Block:
    scales = np.frombuffer(row["scales"], "<f4")
    zero_points = np.frombuffer(row["zero_points"], "<f4")
    which = np.zeros((rows, columns), np.int64)
    if row["quant_axis"] == 0:
        size = row["group_size"] or columns
        which = np.arange(rows)[:, None] * -(-columns // size) + np.arange(columns) // size
    assert scales.size == which.max(initial=-1) + 1
    assert zero_points.size in (0, scales.size)
    assert np.isfinite(scales).all()
    assert np.isfinite(zero_points).all()
    codes = _unpacked(row["data"], rows, columns, BITS[row["quant_type"]]).astype(np.float32)
    each_zero = zero_points[which] if zero_points.size else np.zeros_like(codes)
    with np.errstate(over="ignore"):
        values = (codes - each_zero) * scales[which]
    bits = rounded(values.ravel(), row["dtype"])
    q, scale, zero = (np.asarray(x, np.float64) for x in (codes, scales[which], each_zero))
    return Block(row["row_start"], rows, row["quant_type"], bits, q, scale, zero, which, not zero_points.size)


def _unpacked(data: bytes, rows: int, columns: int, bits: int) -> np.ndarray:
    if bits == 8:
        return np.frombuffer(data, np.int8).reshape(rows, columns).astype(np.int64)
    packed = np.frombuffer(data, np.uint8).reshape(rows, -(-columns * bits // 8))
    stream = np.unpackbits(packed, axis=1, bitorder="little")
    assert not stream[:, columns * bits :].any()
    unsigned = stream[:, : columns * bits].reshape(rows, columns, bits) @ (1 << np.arange(bits))
    return np.asarray(unsigned - (1 << (bits - 1)))


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """The bits of float32 values in `dtype`, rounded to nearest, ties to even; values that would overflow become the
    largest one."""
    if dtype == "float64":
        return np.asarray(values.astype("<f8"))
    if dtype == "float32":
        most = np.finfo(np.float32).max
        return np.asarray(np.clip(values, -most, most).astype("<f4"))
    clipped = np.clip(values, -_LARGEST[dtype], _LARGEST[dtype])
    return np.asarray(bf16_bits(clipped) if dtype == "bfloat16" else clipped.astype("<f2"))


def as_float(bits: np.ndarray, dtype: str) -> np.ndarray:
    """The values of bits of this dtype, as float64."""
    return (bf16_values(bits) if dtype == "bfloat16" else bits).astype(np.float64)


def checked_by_ranges(root: Path, index_path: str) -> dict[str, DecodedLayer]:
    """The layers at the ranges of the index, without those that have a row whose bytes do not match its checksum."""
    rows: dict[str, list[dict[str, Any]]] = {}
    bad: set[str] = set()
    for row in pq.read_table(root / index_path).to_pylist():
        name = row["layer_name"]
        try:
            blobs = {
                blob: _by_range(root, row, blob)
                for blob in ("data", "scales", "zero_points", "chunk_digests")
            }
            check_row({**row, **blobs})
        except (AssertionError, OSError, ValueError, TypeError, OverflowError, pa.ArrowException):
            bad.add(name)
            continue
        rows.setdefault(name, []).append({**row, **blobs})
    layers: dict[str, DecodedLayer] = {}
    for name in rows.keys() - bad:
        try:
            layers |= assembled(rows[name])
        except (AssertionError, ValueError, TypeError, KeyError, IndexError, OverflowError, MemoryError):
            continue  # a layer that the package has to refuse
    return layers


def _by_range(root: Path, row: Mapping[str, Any], blob: str) -> bytes:
    offset, stored, nbytes = (row[f"{blob}_{name}"] for name in ("offset", "stored_nbytes", "nbytes"))
    if nbytes == 0:
        return b""
    assert min(offset, stored) >= 0
    assert offset + stored <= (root / row["part"]).stat().st_size
    assert nbytes < 1 << 26
    with (root / row["part"]).open("rb") as file:
        file.seek(offset)
        found: bytes = file.read(stored)
    assert len(found) == stored
    if row["compression"] == "none":
        assert stored == nbytes
        return found
    page: bytes = pa.Codec("zstd").decompress(found, nbytes + 4, asbytes=True)
    assert page[:4] == nbytes.to_bytes(4, "little")
    assert len(page) == nbytes + 4
    return page[4:]


def hash_of(data: bytes) -> str:
    return f"xxh3_128:{xxhash.xxh3_128_hexdigest(data)}"
