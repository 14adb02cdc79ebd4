"""Writes V1 and V2 Parquet files with pyarrow and plain loops alone, following the format's description.

What the package reads is compared with these rows, so an error would have to be in both, in the same way.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

BITS = {"int8": 8, "int4": 4, "int3": 3, "int2": 2}
V1_NAMES = ["layer_name", "shape", "dtype", "data", "num_params"]
SCHEMA = pa.schema(
    [
        ("layer_name", pa.string()),
        ("shape", pa.list_(pa.int32())),
        ("dtype", pa.string()),
        ("data", pa.large_binary()),
        ("num_params", pa.int64()),
        ("quant_type", pa.string()),
        ("scales", pa.binary()),
        ("zero_points", pa.binary()),
        ("quant_axis", pa.int32()),
        ("group_size", pa.int32()),
        ("layer_shape", pa.list_(pa.int64())),
        ("row_dims", pa.int32()),
        ("row_start", pa.int64()),
        ("chunk_digests", pa.binary()),
        ("checksum", pa.string()),
    ],
    {"arrowquant.schema_version": "2"},
)


@dataclass(frozen=True)
class Row:
    """One row.

    columns: plain values of its columns. decoded: the values that a reader has to give (float64, or raw).
    """

    columns: dict[str, Any]
    decoded: np.ndarray = field(repr=False)

    @property
    def name(self) -> str:
        return str(self.columns["layer_name"])

    def but(self, **columns: Any) -> Row:
        return replace(self, columns={**self.columns, **columns})


def bf16_bits(values: np.ndarray) -> np.ndarray:
    """The bfloat16 bits (uint16) of float32 values, rounded to nearest even."""
    bits = np.asarray(values, "<f4").view("<u4").astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def bf16_values(bits: np.ndarray) -> np.ndarray:
    return (bits.astype("<u4") << 16).view("<f4")


def kept_row(name: str, values: np.ndarray, dtype: str, *, as_fp16: bool = False, **place: Any) -> Row:
    """A row that is not quantized. values: an array whose bytes are the bits of the dtype."""
    data = values.astype("<f2").tobytes() if as_fp16 else values.tobytes()
    decoded = values.astype("<f2").astype(values.dtype) if as_fp16 else values
    return _row(name, values.shape, dtype, data, "fp16" if as_fp16 else "none", decoded=decoded, **place)


def quantized_row(
    name: str,
    codes: np.ndarray,
    scales: np.ndarray,
    zero_points: np.ndarray | None,
    *,
    quant_type: str,
    group_size: int,
    per_tensor: bool = False,
    shape: tuple[int, ...] | None = None,
    dtype: str = "float32",
    **place: Any,
) -> Row:
    """A quantized row. codes: signed, [rows, columns]. scales, zero_points: float32 [rows, groups], or [1] per
    tensor."""
    rows, columns = codes.shape
    bits = BITS[quant_type]
    data = b"".join(_pack([int(q) for q in row], bits) for row in codes)
    decoded = np.zeros((rows, columns))
    for i in range(rows):
        for j in range(columns):
            place_of = (0,) if per_tensor else (i, j // group_size if group_size else 0)
            zero = float(zero_points[place_of]) if zero_points is not None else 0.0
            decoded[i, j] = (float(codes[i, j]) - zero) * float(scales[place_of])
    shape = shape or (rows, columns)
    return _row(
        name,
        shape,
        dtype,
        data,
        quant_type,
        scales=scales.astype("<f4").tobytes(),
        zero_points=zero_points.astype("<f4").tobytes() if zero_points is not None else b"",
        quant_axis=-1 if per_tensor else 0,
        group_size=group_size,
        decoded=decoded.reshape(shape),
        **place,
    )


def random_row(
    rng: np.random.Generator,
    name: str,
    rows: int,
    columns: int,
    quant_type: str,
    *,
    group_size: int = 0,
    symmetric: bool = True,
    per_tensor: bool = False,
    **more: Any,
) -> Row:
    qmin, qmax = -(2 ** (BITS[quant_type] - 1)), 2 ** (BITS[quant_type] - 1) - 1
    groups = (1,) if per_tensor else (rows, math.ceil(columns / group_size) if group_size else 1)
    scales = rng.uniform(0.5, 2.0, groups).astype("<f4")
    zero_points = None if symmetric else rng.uniform(qmin, qmax, groups).astype("<f4")
    codes = rng.integers(qmin, qmax + 1, (rows, columns))
    return quantized_row(
        name,
        codes,
        scales,
        zero_points,
        quant_type=quant_type,
        group_size=group_size,
        per_tensor=per_tensor,
        **more,
    )


def _pack(codes: list[int], bits: int) -> bytes:
    """Packs codes from the low bits up, each row from a new byte."""
    if bits == 8:
        return struct.pack(f"<{len(codes)}b", *codes)
    number = 0
    for i, code in enumerate(codes):
        number |= (code + 2 ** (bits - 1)) << (i * bits)
    return number.to_bytes((len(codes) * bits + 7) // 8, "little")


def _row(name: str, shape: Sequence[int], dtype: str, data: bytes, quant_type: str, **more: Any) -> Row:
    decoded = more.pop("decoded")
    columns = {
        "layer_name": name,
        "shape": list(shape),
        "dtype": dtype,
        "data": data,
        "num_params": math.prod(shape),
        "quant_type": quant_type,
        "scales": b"",
        "zero_points": b"",
        "quant_axis": -1,
        "group_size": 0,
        "layer_shape": list(shape),
        "row_dims": 1,
        "row_start": 0,
        **more,
    }
    return Row(signed(columns), decoded)


def signed(columns: dict[str, Any]) -> dict[str, Any]:
    """`columns` with the digests and the checksum of its values."""
    data = columns["data"]
    digests = b"".join(xxhash.xxh3_128_digest(data[i : i + 2**20]) for i in range(0, len(data), 2**20))
    checksum = xxhash.xxh3_128_hexdigest(digests + columns["scales"] + columns["zero_points"])
    return {**columns, "chunk_digests": digests, "checksum": f"xxh3_128:{checksum}"}


def write_v2(path: Path, rows: Sequence[Row], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({name: [row.columns[name] for row in rows] for name in SCHEMA.names}, schema=SCHEMA)
    settings: dict[str, Any] = {
        "compression": "none",
        "use_dictionary": False,
        "write_page_checksum": True,
        "write_statistics": False,
    }
    pq.write_table(table, path, **{**settings, "row_group_size": 1, **options})
    return path


def write_v1(path: Path, rows: Sequence[Row], metadata: dict[str, str] | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([SCHEMA.field(name) for name in V1_NAMES], metadata)
    table = pa.table({name: [row.columns[name] for row in rows] for name in V1_NAMES}, schema=schema)
    pq.write_table(table, path, **options)
    return path
