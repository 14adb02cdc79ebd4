"""V2 read back by the published formula, with pyarrow and numpy alone: nothing of the package under test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

BITS = {"int8": 8, "int4": 4, "int3": 3, "int2": 2}
KEPT_DTYPES = {
    "float32": "<f4",
    "float16": "<f2",
    "float64": "<f8",
    "int64": "<i8",
    "uint8": "u1",
    "bool": "?",
}


@dataclass(frozen=True)
class Layer:
    """values: float64 [*shape], or the integers of a layer that was kept."""

    quant_type: str
    values: np.ndarray


def read_table(target: Path) -> pa.Table:
    """All rows of the dataset, by layer and row block."""
    table = ds.dataset(target / "weights", format="parquet", partitioning="hive").to_table()
    return table.sort_by([("layer_name", "ascending"), ("row_start", "ascending")])


def read_rows(target: Path) -> Iterator[dict[str, Any]]:
    for batch in read_table(target).to_batches():
        yield from batch.to_pylist()


def read_layers(target: Path) -> dict[str, Layer]:
    """Every layer of the dataset, decoded, its row blocks put together."""
    blocks: dict[str, list[dict[str, Any]]] = {}
    for row in read_rows(target):
        blocks.setdefault(row["layer_name"], []).append(row)
    layers = {}
    for name, rows in blocks.items():
        values = np.concatenate([decode_row(row).reshape(-1) for row in rows])
        layers[name] = Layer(rows[0]["quant_type"], values.reshape(rows[0]["layer_shape"]))
    return layers


def decode_row(row: dict[str, Any]) -> np.ndarray:
    """x̂ = (q - zero_point) · scale, for one row of the dataset as a dict of its columns."""
    shape = tuple(row["shape"])
    if row["quant_type"] not in BITS:
        dtype = "float16" if row["quant_type"] == "fp16" else row["dtype"]
        return np.frombuffer(row["data"], KEPT_DTYPES[dtype]).reshape(shape)
    rows = int(np.prod(shape[: row["row_dims"]]))
    columns = row["num_params"] // rows
    codes = unpack(row["data"], BITS[row["quant_type"]], rows, columns)
    scales = _per_value(row, "scales", rows, columns)
    zero_points = _per_value(row, "zero_points", rows, columns) if row["zero_points"] else 0.0
    return np.asarray((codes - zero_points) * scales, np.float64).reshape(shape)


def unpack(data: bytes, bits: int, rows: int, columns: int) -> np.ndarray:
    """Signed codes [rows, columns], float64; low bits first, each row from a byte of its own."""
    packed = np.frombuffer(data, np.uint8).reshape(rows, -1)
    if bits == 8:
        return packed.view(np.int8).astype(np.float64)
    every_bit = np.unpackbits(packed, axis=1, bitorder="little")[:, : columns * bits]
    unsigned = every_bit.reshape(rows, columns, bits) @ (1 << np.arange(bits))
    return unsigned.astype(np.float64) - (1 << (bits - 1))


def _per_value(row: dict[str, Any], column: str, rows: int, columns: int) -> np.ndarray:
    """Scales or zero points, float64, spread over the values that they belong to."""
    stored: np.ndarray = np.frombuffer(row[column], "<f4").astype(np.float64)
    if row["quant_axis"] == -1:
        return stored.reshape(1, 1)
    group = row["group_size"] or columns
    spread: np.ndarray = stored.reshape(rows, -1)[:, np.arange(columns) // group]
    return spread


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    x, y = a.astype(np.float64).reshape(-1), b.astype(np.float64).reshape(-1)
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))
