"""A plan as an Arrow table (`run/plan.arrow`), a row per row block, and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from operator import attrgetter
from typing import Any

import pyarrow as pa
import xxhash

from arrowquant_dist.checkpoint.collector import collector_paused
from arrowquant_dist.checkpoint.table import LAYER_TABLE_SCHEMA, RAW, Layer
from arrowquant_dist.columns import arrow_batch
from arrowquant_dist.config import QuantSpec
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.errors import CorruptWeights, InvalidCheckpoint
from arrowquant_dist.plan.blocks import Plan, RowBlock, Shard
from arrowquant_dist.plan.fingerprint import PLAN_VERSION, fingerprint
from arrowquant_dist.storage.uris import redact

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
_LAYER_FIELDS = ("layer_name", "layer_shape", "dtype", "uri", "layer_offset", "layer_nbytes", "encoding")
_BLOCK_FIELDS = ("shard", "row_start", "rows", "kept_reason")
_spec_values = attrgetter(*(name for name, _ in _SPEC_FIELDS))
_METADATA_TYPES: dict[str, type] = {
    "plan_version": int,
    "fingerprint": str,
    "code": str,
    "kept_reasons": str,
    "source": dict,
    "config": dict,
    "aliases": dict,
    "compression": str,
    "sidecars": list,
    "notes": list,
}
_UNKNOWN = {
    f"{_PREFIX}{name}": b'""' for name in ("kept_reasons", "code")
}  # the first releases wrote neither
_BATCH_ROWS = 1 << 14  # bounds the Python objects that are there at a time
# shape, num_params, offset and nbytes are the block's own, `layer_…` those of the whole layer. Where a
# layer's encoding is not raw, a block's bytes are no range of their own, and offset and nbytes are the
# layer's.
PLAN_TABLE_SCHEMA = pa.schema(
    [
        *LAYER_TABLE_SCHEMA,
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


@collector_paused()
def plan_table(plan: Plan) -> pa.Table:
    """The plan as a table of PLAN_TABLE_SCHEMA; what isn't a row's is JSON in the schema's metadata.

    URIs are without credentials and queries, so a plan that came through a table reads private sources by
    storage options alone.
    """
    shown = lru_cache(maxsize=None)(redact)
    schema = PLAN_TABLE_SCHEMA.with_metadata(_metadata(plan))
    numbered = ((shard.index, block) for shard in plan.shards for block in shard.blocks)
    batches = []
    while rows := [_row(shard, block, shown) for shard, block in islice(numbered, _BATCH_ROWS)]:
        batches.append(arrow_batch(zip(*rows, strict=True), schema))
    return pa.Table.from_batches(batches, schema)


@collector_paused()
def plan_from_table(table: pa.Table) -> Plan:
    """The inverse of `plan_table`.

    Raises CorruptWeights where the table is no plan, InvalidCheckpoint where a newer release made it.
    """
    metadata = _read_metadata(table)
    if not table.schema.equals(PLAN_TABLE_SCHEMA, check_metadata=False):
        raise CorruptWeights("the plan's table has other columns than a plan; choose another target")
    if any(table[f.name].null_count for f in PLAN_TABLE_SCHEMA if f.name != "kept_reason"):
        raise CorruptWeights("the plan's table has empty cells; choose another target or --overwrite")
    shards = _shards(table)
    source = metadata["source"]
    made = fingerprint(
        shards, metadata["aliases"], source["files"], metadata["compression"], metadata["code"]
    )
    if made != metadata["fingerprint"]:
        message = f"the plan's fingerprint is {metadata['fingerprint']}, its content's is {made}"
        raise CorruptWeights(f"{message}; choose another target or --overwrite")
    if metadata["kept_reasons"] not in ("", _digest_of_reasons(shards)):
        raise CorruptWeights("the plan's kept_reason column is damaged; choose another target or --overwrite")
    return Plan(
        shards=shards,
        aliases=metadata["aliases"],
        source=source,
        config=metadata["config"],
        compression=metadata["compression"],
        fingerprint=metadata["fingerprint"],
        code=metadata["code"],
        sidecars=tuple(metadata["sidecars"]),
        notes=tuple(metadata["notes"]),
    )


def _row(shard: int, block: RowBlock, shown: Callable[[str], str]) -> tuple[Any, ...]:
    """The block as a row of PLAN_TABLE_SCHEMA."""
    layer, spec = block.layer, block.spec
    columns = block.columns
    offset, nbytes = layer.offset, layer.nbytes
    if layer.encoding == RAW:
        row_nbytes = columns * DTYPES[layer.dtype].itemsize
        offset, nbytes = offset + block.row_start * row_nbytes, block.rows * row_nbytes
    own = (layer.name, block.shape, layer.dtype, block.rows * columns, shown(layer.uri), offset, nbytes)
    whole = (layer.encoding, layer.shape, layer.offset, layer.nbytes, shard, block.row_start, block.rows)
    return (*own, *whole, *_spec_values(spec), block.kept_reason)


def _metadata(plan: Plan) -> dict[str, str]:
    values = {
        "plan_version": PLAN_VERSION,
        "fingerprint": plan.fingerprint,
        "code": plan.code,
        "kept_reasons": _digest_of_reasons(plan.shards),
        "source": plan.source,
        "config": plan.config,
        "aliases": plan.aliases,
        "compression": plan.compression,
        "sidecars": list(plan.sidecars),
        "notes": list(plan.notes),
    }
    return {_PREFIX + name: json.dumps(value) for name, value in values.items()}


def _digest_of_reasons(shards: Iterable[Shard]) -> str:
    """xxh3_128, hex. What people read of a row is in no fingerprint, and damaged all the same where a bit flips."""
    state = xxhash.xxh3_128()
    for shard in shards:
        state.update("\0".join(block.kept_reason or "" for block in shard.blocks).encode())
    return str(state.hexdigest())


def _read_metadata(table: pa.Table) -> dict[str, Any]:
    try:
        metadata = _parse_metadata({k.decode(): v for k, v in (table.schema.metadata or {}).items()})
    except (KeyError, TypeError, ValueError) as error:
        message = "the plan's metadata is damaged; choose another target or --overwrite"
        raise CorruptWeights(f"{message} ({error!r})") from error
    if metadata["plan_version"] > PLAN_VERSION:
        message = (
            f"plan_version is {metadata['plan_version']}, this release reads up to {PLAN_VERSION}; "
            "update arrowquant-dist"
        )
        raise InvalidCheckpoint(message)
    return metadata


def _parse_metadata(raw: dict[str, bytes]) -> dict[str, Any]:
    """Raises KeyError, TypeError or ValueError for what `_metadata` would not have written."""
    metadata = {name: json.loads((_UNKNOWN | raw)[_PREFIX + name]) for name in _METADATA_TYPES}
    for name, kind in _METADATA_TYPES.items():
        if not isinstance(metadata[name], kind):
            raise TypeError(f"{name} is no {kind.__name__}")
    if not all("uri" in file for file in metadata["source"]["files"]):
        raise ValueError("a source file has no uri")
    return metadata


def _shards(table: pa.Table) -> tuple[Shard, ...]:
    """Blocks of one layer share their Layer, equal specs are one object."""
    specs: dict[tuple[Any, ...], QuantSpec] = {}
    layers: dict[str, Layer] = {}
    shapes: dict[tuple[int, ...], tuple[int, ...]] = {}
    shards: dict[int, list[RowBlock]] = {}
    for batch in table.to_batches(_BATCH_ROWS):
        spec_rows = _tuples(batch, [name for name, _ in _SPEC_FIELDS])
        layer_rows = _tuples(batch, _LAYER_FIELDS)
        for spec_row, layer_row, (shard, row_start, rows, reason) in zip(
            spec_rows, layer_rows, _tuples(batch, _BLOCK_FIELDS), strict=True
        ):
            spec = specs.get(spec_row)
            if spec is None:
                spec = specs[spec_row] = QuantSpec(*spec_row)
            name, shape, dtype, uri, offset, nbytes, encoding = layer_row
            layer = layers.get(name) if row_start else None
            if layer is None:
                whole = shapes.setdefault(tuple(shape), tuple(shape))
                layer = layers[name] = Layer(name, whole, dtype, uri, offset, nbytes, encoding)
            blocks = shards.get(shard)
            if blocks is None:
                blocks = shards[shard] = []
            blocks.append(RowBlock(layer, spec, row_start, rows, reason))
    return tuple(Shard(index, tuple(blocks)) for index, blocks in shards.items())


def _tuples(batch: pa.RecordBatch, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    return zip(*(_values(batch.column(name), name) for name in names), strict=True)


def _values(column: pa.Array, name: str) -> list[Any]:
    """Texts that are the same are one object: 200,000 layers have a few hundred URIs, dtypes and reasons."""
    if not pa.types.is_string(column.type) or name == "layer_name":
        return list(column.to_pylist())
    encoded = column.dictionary_encode(null_encoding="encode")
    texts = encoded.dictionary.to_pylist()
    return [texts[index] for index in encoded.indices.to_pylist()]
