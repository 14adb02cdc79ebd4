"""Reads targets with pyarrow alone, and copies them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from arrowquant_dist.config import DEFAULT_STORAGE, Storage
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.uris import is_local

Row = dict[str, Any]


def manifest_of(target: Path) -> dict[str, Any]:
    """The content of manifest.json."""
    content: dict[str, Any] = json.loads((target / "manifest.json").read_text())
    return content


def rows_of(target: Path) -> dict[tuple[str, int], Row]:
    """{(layer_name, row_start): row} from the parts that the manifest names."""
    rows = [
        row
        for part in manifest_of(target)["parts"]
        for row in pq.ParquetFile(target / part["path"]).read().to_pylist()
    ]
    found = {(row["layer_name"], row["row_start"]): row for row in rows}
    assert len(found) == len(rows), "a row is there twice"
    return found


def weights_of(target: Path) -> dict[tuple[str, int], tuple[bytes, bytes, bytes]]:
    """{(layer_name, row_start): (data, scales, zero_points)}: the bytes that have to be equal between runs."""
    return {key: (row["data"], row["scales"], row["zero_points"]) for key, row in rows_of(target).items()}


def copy_target(before: str, target: str, storage: Storage = DEFAULT_STORAGE) -> None:
    """Copies all objects of one place to another in the same storage, which is faster than running the command
    again."""
    if is_local(target):
        shutil.copytree(before, target)
        return
    source, store = open_store(before, storage), open_store(target, storage)
    for info in source.list():
        store.write(info.path, source.read(info.path))


def decoded(row: Row) -> np.ndarray:
    """The values of one quantized row, float64 [rows, columns], by the published formula in plain numpy."""
    bits = int(row["quant_type"].removeprefix("int"))
    rows = int(np.prod(row["shape"][: row["row_dims"]]))
    columns = int(np.prod(row["shape"][row["row_dims"] :]))
    packed = np.frombuffer(row["data"], np.uint8).reshape(rows, -1)
    if bits == 8:
        codes = packed.view(np.int8).astype(np.float64)
    else:
        stream = np.unpackbits(packed, axis=1, bitorder="little")[:, : columns * bits].reshape(
            rows, columns, bits
        )
        codes = stream.astype(np.int64) @ (1 << np.arange(bits)) - (1 << (bits - 1))
    group = row["group_size"] or columns
    scales = np.frombuffer(row["scales"], "<f4").astype(np.float64)
    zero_points = np.frombuffer(row["zero_points"], "<f4").astype(np.float64)
    if row["quant_axis"] >= 0:
        scales, zero_points = (_spread(v, rows, columns, group) for v in (scales, zero_points))
    return np.asarray((codes - (zero_points if zero_points.size else 0.0)) * scales)


def _spread(values: np.ndarray, rows: int, columns: int, group: int) -> np.ndarray:
    """Spreads [rows · groups] over the columns: [rows, columns]; an empty array stays empty."""
    return np.repeat(values.reshape(rows, -1), group, axis=1)[:, :columns] if values.size else values
