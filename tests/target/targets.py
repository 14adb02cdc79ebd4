"""Makes targets from rows of the tests' own encoder, published by the package as a run publishes them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from arrowquant_dist.checkpoint.table import Layer
from arrowquant_dist.config import QuantSpec
from arrowquant_dist.format.parquet.part import PartWriter
from arrowquant_dist.format.record import PartInfo
from arrowquant_dist.format.row import BLOB_COLUMNS, Blobs, StoredRow, headers_of
from arrowquant_dist.plan import Plan, RowBlock, Shard, plan_table
from arrowquant_dist.plan.fingerprint import fingerprint
from arrowquant_dist.target.index import write_index
from arrowquant_dist.target.layout import part_path
from arrowquant_dist.target.manifest import Manifest
from arrowquant_dist.target.publish import prepare, publish
from arrowquant_dist.target.receipt import Receipt
from arrowquant_dist.target.target import Target
from tests.format.encoder import Row
from tests.target.drivers import start

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
    plan = make_plan(shards, compression, aliases or {})
    driver = start(Target.open(str(root)), plan_table(plan))
    for shard, rows in enumerate(shards):
        part = write_part(driver.target, part_path(shard, "0"), rows, compression)
        receipt = Receipt(
            shard, "0", part.path, part.nbytes, part.hash, part.records, {}, 0, "w", "n", 0.0, 0, 0, 0
        )
        assert driver.commit(receipt)
    receipts = driver.receipts()
    index = write_index((r.part, r.shard, record) for r in receipts.values() for record in r.rows)
    manifest = Manifest.of(
        receipts.values(),
        index=index,
        sidecars=sidecars or {},
        fingerprint=plan.fingerprint,
        source=plan.source,
        config=plan.config,
        aliases=plan.aliases,
        compression=compression,
    )
    draft = prepare(driver.target, driver.run, manifest, index, sidecars or {}, driver.target.look())
    publish(driver.target, draft, {})
    return str(root)


def make_plan(shards: Sequence[Sequence[Row]], compression: str, aliases: Mapping[str, str]) -> Plan:
    """The plan of a run that would have made these rows."""
    planned = tuple(
        Shard(index, tuple(_row_block(row.columns) for row in rows)) for index, rows in enumerate(shards)
    )
    return Plan(
        shards=planned,
        aliases=dict(aliases),
        source={"uri": "/models/m", "format": "safetensors", "files": []},
        config={"quant_type": "int8"},
        compression=compression,
        fingerprint=fingerprint(planned, aliases, [], compression, "0123456789abcdef", {}),
        code="0123456789abcdef",
    )


def _row_block(columns: Mapping[str, Any]) -> RowBlock:
    shape, row_dims = tuple(columns["layer_shape"]), columns["row_dims"]
    nbytes = math.prod(shape) * WIDTHS[columns["dtype"]]
    layer = Layer(columns["layer_name"], shape, columns["dtype"], "/models/m/w", 0, nbytes)
    is_whole = tuple(columns["shape"]) == shape
    rows = math.prod(shape[:row_dims]) if is_whole else columns["shape"][0]
    spec = QuantSpec(columns["quant_type"], group_size=columns["group_size"], row_dims=row_dims)
    return RowBlock(layer, spec, columns["row_start"], rows)


def write_part(target: Target, path: str, rows: Sequence[Row], compression: str) -> PartInfo:
    with PartWriter(target.store, path, compression) as writer:
        for row in rows:
            nbytes = math.prod(row.columns["shape"]) * WIDTHS[row.columns["dtype"]]
            writer.add(stored_row(row), source_nbytes=nbytes, method="rtn", kept_reason=None, errors=None)
        return writer.close()


def stored_row(row: Row) -> StoredRow:
    [header] = headers_of({name: [value] for name, value in row.columns.items()}, 1)
    return StoredRow(header, Blobs(*(np.frombuffer(row.columns[c.name], c.dtype) for c in BLOB_COLUMNS)))
