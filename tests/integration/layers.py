"""Decodes a whole dataset by the published formula, with pyarrow and numpy alone and nothing of the package under
test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from tests.datasets import Row, decoded

QUANTIZED = ("int8", "int4", "int3", "int2")


@dataclass(frozen=True)
class Layer:
    """values: [*shape], float64; for a kept layer the stored values, in float16 or the source's dtype."""

    quant_type: str
    values: np.ndarray


def read_table(target: Path) -> pa.Table:
    """All rows of `target/weights`, by layer and row block."""
    table = ds.dataset(target / "weights", format="parquet", partitioning="hive").to_table()
    return table.sort_by([("layer_name", "ascending"), ("row_start", "ascending")])


def read_layers(target: Path) -> dict[str, Layer]:
    """Every layer, with its row blocks put together."""
    blocks: dict[str, list[Row]] = {}
    for row in read_table(target).to_pylist():
        blocks.setdefault(row["layer_name"], []).append(row)
    return {
        name: Layer(
            rows[0]["quant_type"],
            np.concatenate([_values(row).reshape(-1) for row in rows]).reshape(rows[0]["layer_shape"]),
        )
        for name, rows in blocks.items()
    }


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The cosine of two arrays, computed in float64."""
    x, y = a.astype(np.float64).reshape(-1), b.astype(np.float64).reshape(-1)
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def _values(row: Row) -> np.ndarray:
    if row["quant_type"] in QUANTIZED:
        return decoded(row)
    dtype = "float16" if row["quant_type"] == "fp16" else row["dtype"]
    return np.frombuffer(row["data"], np.dtype(dtype).newbyteorder("<"))
