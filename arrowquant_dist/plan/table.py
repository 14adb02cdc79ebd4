"""A plan as an Arrow table (`run/plan.arrow`), a row per row block, and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pyarrow as pa

from arrowquant_dist.checkpoint.table import RAW, Layer
from arrowquant_dist.config import QuantSpec
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.errors import CorruptWeights, TargetConflict
from arrowquant_dist.plan.blocks import Plan, RowBlock, Shard
from arrowquant_dist.plan.fingerprint import PLAN_VERSION
from arrowquant_dist.store.files import redact

_PREFIX = "arrowquant."
_SPEC_FIELDS = [
    ("quant_type", pa.string()),
    ("per_channel", pa.bool_()),
    ("group_size", pa.int64()),
    ("symmetric", pa.bool_()),
    ("method", pa.string()),
    ("integer_zero_points", pa.bool_()),
    ("row_dims", pa.int32()),
    ("keep_non_finite", pa.bool_()),
]
# shape, num_params, offset and nbytes are the block's own, `layer_…` those of the whole layer. Where a
# layer's encoding is not raw, a block's bytes are no range of their own, and offset and nbytes are the
# layer's.
PLAN_TABLE_SCHEMA = pa.schema(
    [
        ("layer_name", pa.string()),
        ("shape", pa.list_(pa.int64())),
        ("dtype", pa.string()),
        ("num_params", pa.int64()),
        ("uri", pa.string()),
        ("offset", pa.int64()),
        ("nbytes", pa.int64()),
        ("encoding", pa.string()),
        ("layer_shape", pa.list_(pa.int64())),
        ("layer_offset", pa.int64()),
        ("layer_nbytes", pa.int64()),
        ("shard", pa.int32()),
        ("row_start", pa.int64()),
        ("rows", pa.int64()),
        *_SPEC_FIELDS,
        ("kept_reason", pa.string()),
    ]
)


def plan_table(plan: Plan) -> pa.Table:
    """The plan as a table of PLAN_TABLE_SCHEMA; what isn't a row's is JSON in the schema's metadata.

    URIs are without credentials and queries, so a plan that came through a table reads private sources by
    storage options alone.
    """
    shown = lru_cache(maxsize=None)(redact)
    blocks = [(shard.index, block) for shard in plan.shards for block in shard.blocks]
    make: dict[str, Callable[[int, RowBlock], Any]] = {
        "layer_name": lambda _, b: b.layer.name,
        "shape": lambda _, b: b.shape,
        "dtype": lambda _, b: b.layer.dtype,
        "num_params": lambda _, b: b.num_params,
        "uri": lambda _, b: shown(b.layer.uri),
        "offset": lambda _, b: _byte_range(b)[0],
        "nbytes": lambda _, b: _byte_range(b)[1],
        "encoding": lambda _, b: b.layer.encoding,
        "layer_shape": lambda _, b: b.layer.shape,
        "layer_offset": lambda _, b: b.layer.offset,
        "layer_nbytes": lambda _, b: b.layer.nbytes,
        "shard": lambda shard, _: shard,
        "row_start": lambda _, b: b.row_start,
        "rows": lambda _, b: b.rows,
        "kept_reason": lambda _, b: b.kept_reason,
    }
    columns = []
    for f in PLAN_TABLE_SCHEMA:
        get = make.get(f.name)
        values = (
            [get(shard, block) for shard, block in blocks]
            if get is not None
            else [getattr(block.spec, f.name) for _, block in blocks]
        )
        columns.append(pa.array(values, f.type))
    return pa.table(columns, PLAN_TABLE_SCHEMA.with_metadata(_metadata(plan)))


def plan_from_table(table: pa.Table) -> Plan:
    """The inverse of `plan_table`.

    Raises CorruptWeights where the table is no plan, TargetConflict where another version of the package made
    it.
    """
    metadata = _read_metadata(table)
    if not table.schema.equals(PLAN_TABLE_SCHEMA, check_metadata=False):
        raise CorruptWeights("the plan's table has other columns than a plan; choose another target")
    shards = _shards(table)
    return Plan(
        shards=shards,
        aliases=metadata["aliases"],
        source=metadata["source"],
        config=metadata["config"],
        compression=metadata["compression"],
        fingerprint=metadata["fingerprint"],
        sidecars=tuple(metadata["sidecars"]),
        notes=tuple(metadata["notes"]),
    )


def plan_to_bytes(plan: Plan) -> bytes:
    """The table as an Arrow IPC file, what `run/plan.arrow` holds. Equal plans give equal bytes."""
    sink = pa.BufferOutputStream()
    table = plan_table(plan)
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def plan_from_bytes(data: bytes) -> Plan:
    """The inverse of `plan_to_bytes`. Raises as `plan_from_table`."""
    try:
        table = pa.ipc.open_file(pa.BufferReader(data)).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise CorruptWeights(f"the plan is damaged, choose another target or --overwrite ({error})") from error
    return plan_from_table(table)


def _byte_range(block: RowBlock) -> tuple[int, int]:
    """(offset, nbytes) of the block in its object."""
    layer = block.layer
    if layer.encoding != RAW:
        return layer.offset, layer.nbytes
    return layer.offset + block.value_range[0] * DTYPES[layer.dtype].itemsize, block.source_nbytes


def _metadata(plan: Plan) -> dict[str, str]:
    values = {
        "plan_version": PLAN_VERSION,
        "fingerprint": plan.fingerprint,
        "source": plan.source,
        "config": plan.config,
        "aliases": plan.aliases,
        "compression": plan.compression,
        "sidecars": list(plan.sidecars),
        "notes": list(plan.notes),
    }
    return {_PREFIX + name: json.dumps(value) for name, value in values.items()}


def _read_metadata(table: pa.Table) -> dict[str, Any]:
    raw = {k.decode(): v for k, v in (table.schema.metadata or {}).items()}
    names = ("plan_version", "fingerprint", "source", "config", "aliases", "compression", "sidecars", "notes")
    try:
        metadata = {name: json.loads(raw[_PREFIX + name]) for name in names}
    except (KeyError, ValueError) as error:
        message = "the plan's metadata is damaged, choose another target or --overwrite"
        raise CorruptWeights(f"{message} ({error!r})") from error
    if metadata["plan_version"] != PLAN_VERSION:
        made = f"the plan is of version {metadata['plan_version']}, this package makes {PLAN_VERSION}"
        raise TargetConflict(f"{made}; finish it with the version that began it, or choose another target")
    return metadata


def _shards(table: pa.Table) -> tuple[Shard, ...]:
    """Blocks of one layer share their Layer, equal specs are one object."""
    specs: dict[tuple[Any, ...], QuantSpec] = {}
    layers: dict[str, Layer] = {}
    shards: dict[int, list[RowBlock]] = {}
    spec_rows = zip(*(table[name].to_pylist() for name, _ in _SPEC_FIELDS), strict=True)
    names = ("layer_name", "layer_shape", "dtype", "uri", "layer_offset", "layer_nbytes", "encoding")
    layer_rows = zip(*(table[name].to_pylist() for name in names), strict=True)
    block_rows = zip(*(table[n].to_pylist() for n in ("shard", "row_start", "rows", "kept_reason")),
    strict=True) for spec_row, layer_row, (shard, row_start, rows, reason) in zip(
        spec_rows, layer_rows, block_rows, strict=True
    ):
        spec = specs.get(spec_row) or specs.setdefault(spec_row, QuantSpec(*spec_row))
        name, shape, *rest = layer_row
        layer = layers.get(name) or layers.setdefault(name, Layer(name, tuple(shape), *rest))
        shards.setdefault(shard, []).append(RowBlock(layer, spec, row_start, rows, reason))
    return tuple(Shard(index, tuple(blocks)) for index, blocks in shards.items())
