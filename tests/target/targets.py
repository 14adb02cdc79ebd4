"""Targets of rows that the tests' own encoder made, published by the package as a run publishes them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from arrowquant_dist.format.parquet.part import PartInfo, PartWriter
from arrowquant_dist.format.schema import StoredRow
from arrowquant_dist.target.index import write_index
from arrowquant_dist.target.layout import part_path
from arrowquant_dist.target.manifest import Manifest
from arrowquant_dist.target.receipt import Receipt
from arrowquant_dist.target.target import Target
from tests.format.encoder import Row

WIDTHS = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int64": 8, "uint8": 1}


def make_target(
    root: Path | str,
    shards: Sequence[Sequence[Row]],
    *,
    compression: str = "zstd",
    aliases: Mapping[str, str] | None = None,
    sidecars: Mapping[str, bytes] | None = None,
) -> str:
    """Publishes `shards` at `root` (a folder or an fsspec URI) and returns it."""
    target = Target.open(str(root))
    said: dict[str, Any] = {
        "fingerprint": "xxh3_128:" + "0" * 32,
        "source": {"uri": "/models/m", "format": "safetensors", "files": []},
        "config": {"quant_type": "int8"},
        "aliases": dict(aliases or {}),
        "compression": compression,
    }
    target.start(_plan_table([row for rows in shards for row in rows], said))
    for shard, rows in enumerate(shards):
        part = write_part(target, part_path(shard, "0"), rows, compression)
        receipt = Receipt(
            shard, "0", part.path, part.nbytes, part.hash, part.records, {}, 0, "w", "n", 0.0, 0, 0, 0
        )
        assert target.commit(receipt)
    receipts = target.receipts()
    index = write_index((r.part, r.shard, record) for r in receipts.values() for record in r.rows)
    manifest = Manifest.of(receipts.values(), index=index, sidecars=sidecars or {}, **said)
    target.publish(manifest, index, dict(sidecars or {}))
    return str(root)


def write_part(target: Target, path: str, rows: Sequence[Row], compression: str) -> PartInfo:
    with PartWriter(target.store, path, compression) as writer:
        for row in rows:
            nbytes = math.prod(row.columns["shape"]) * WIDTHS[row.columns["dtype"]]
            writer.add(stored_row(row), source_nbytes=nbytes, method="rtn", kept_reason=None, errors=None)
        return writer.close()


def stored_row(row: Row) -> StoredRow:
    values = {name: value for name, value in row.columns.items() if name != "num_params"}
    shapes = {name: tuple(values[name]) for name in ("shape", "layer_shape")}
    numbers = {name: np.frombuffer(values[name], "<f4") for name in ("scales", "zero_points")}
    return StoredRow(**{**values, **shapes, **numbers, "data": np.frombuffer(values["data"], np.uint8)})


def _plan_table(rows: Sequence[Row], said: Mapping[str, Any]) -> pa.Table:
    kinds = {
        "layer_name": pa.string(),
        "row_start": pa.int64(),
        "shape": pa.list_(pa.int64()),
        "layer_shape": pa.list_(pa.int64()),
        "dtype": pa.string(),
    }
    metadata = {f"arrowquant.{name}": json.dumps(value) for name, value in said.items()}
    return pa.table(
        {name: [row.columns[name] for row in rows] for name in kinds}, pa.schema([*kinds.items()], metadata)
    )
