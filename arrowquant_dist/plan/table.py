"""A plan as an Arrow table (`run/plan.arrow`), one row per row block, and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

import pyarrow as pa
import xxhash

from arrowquant_dist.checkpoint.collector import collector_paused
from arrowquant_dist.encodings.columns import are_encoding_fields, read_encodings
from arrowquant_dist.errors import CorruptWeights, InvalidCheckpoint
from arrowquant_dist.plan import version1
from arrowquant_dist.plan.blocks import PLAN_VERSION, Plan, Shard
from arrowquant_dist.plan.fingerprint import VERSION_2, fingerprint, source_files
from arrowquant_dist.plan.rows import BLOCK_SCHEMA, later_columns, read_shards, write_rows
from arrowquant_dist.plan.side_tensors import parse_side_tensors, side_tensors, with_side_tensors
from arrowquant_dist.storage.uris import redact
from arrowquant_dist.strict_json import parse_json

_PREFIX = "arrowquant."
_OTHER_COLUMNS = "the plan's table does not have the columns of a plan; choose another target"
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
    "side_inputs": dict,
    "side_tensors": dict,
    "left_out": dict,
}
# Values for keys that the first releases that wrote a version lacked.
_DEFAULTS = {_PREFIX + "left_out": b"{}"}


@collector_paused()
def plan_table(plan: Plan) -> pa.Table:
    """A plan of this version as a table, one row per block; what belongs to no row is JSON in the schema's metadata.

    Columns: BLOCK_SCHEMA, then those of the encodings that the layers have. URIs have no credentials and queries, so
    a plan read back from a table accesses private sources only by storage options.
    """
    table = write_rows(plan.shards, lru_cache(maxsize=None)(redact))
    return table.replace_schema_metadata(_metadata(plan))


@collector_paused()
def plan_from_table(table: pa.Table) -> Plan:
    """The plan in a table that `plan_table` made, of this release or an older one.

    Raises CorruptWeights if the table is not a plan, InvalidCheckpoint if a newer release made it.
    """
    metadata = _read_metadata(table)
    shards, made = _READERS[metadata["plan_version"]](table, metadata)
    if made != metadata["fingerprint"]:
        raise _other_fingerprint(metadata["fingerprint"], made)
    if metadata["kept_reasons"] not in (version1.NO_REASONS, _digest_of_reasons(shards)):
        raise CorruptWeights("the plan's kept_reason column is damaged; choose another target or --overwrite")
    return Plan(
        shards=shards,
        aliases=metadata["aliases"],
        source=metadata["source"],
        config=metadata["config"],
        compression=metadata["compression"],
        fingerprint=metadata["fingerprint"],
        code=metadata["code"],
        sidecars=tuple(metadata["sidecars"]),
        notes=tuple(metadata["notes"]),
        side_inputs=metadata["side_inputs"],
        version=metadata["plan_version"],
        left_out=metadata["left_out"],
    )


def _read_current(table: pa.Table, metadata: Mapping[str, Any]) -> tuple[tuple[Shard, ...], str]:
    """The shards, and the fingerprint computed from what was read."""
    columns = [*BLOCK_SCHEMA, *later_columns(table.schema.names)]
    known = len(columns)
    blocks, encodings = list(table.schema)[:known], list(table.schema)[known:]
    if blocks != columns or not are_encoding_fields(encodings):
        raise CorruptWeights(_OTHER_COLUMNS)
    _check_cells(table, [*table.schema.names[:known], encodings[0].name])
    try:
        shards = read_shards(table, read_encodings)
    except ValueError as error:
        message = f"the plan's encodings are damaged ({error}); choose another target or --overwrite"
        raise CorruptWeights(message) from error
    if metadata["side_tensors"]:
        shards = with_side_tensors(shards, metadata["side_tensors"])
    code, side_inputs, version = (metadata[name] for name in ("code", "side_inputs", "plan_version"))
    return shards, fingerprint(shards, *_hashed(metadata), code, side_inputs, version)


def _read_version1(table: pa.Table, metadata: Mapping[str, Any]) -> tuple[tuple[Shard, ...], str]:
    """The same for a plan of version 1. Its encodings are parsed only after its fingerprint has been verified."""
    if list(table.schema) != list(version1.SCHEMA):
        raise CorruptWeights(_OTHER_COLUMNS)
    _check_cells(table, version1.SCHEMA.names)
    made = version1.fingerprint(table, *_hashed(metadata))
    if made != metadata["fingerprint"]:
        raise _other_fingerprint(metadata["fingerprint"], made)
    return read_shards(table, version1.read_encodings), made


_READERS: Mapping[int, Callable[[pa.Table, Mapping[str, Any]], tuple[tuple[Shard, ...], str]]] = {
    version1.VERSION: _read_version1,
    VERSION_2: _read_current,
    PLAN_VERSION: _read_current,
}


def _hashed(metadata: Mapping[str, Any]) -> tuple[dict[str, str], list[Mapping[str, Any]], str]:
    """What a fingerprint covers besides the shards: aliases, source files, compression."""
    return metadata["aliases"], source_files(metadata["source"]), metadata["compression"]


def _check_cells(table: pa.Table, names: Iterable[str]) -> None:
    """Raises CorruptWeights if a cell is null. Only the reason for which a layer is kept may be."""
    if any(table[name].null_count for name in names if name != "kept_reason"):
        raise CorruptWeights("the plan's table has empty cells; choose another target or --overwrite")


def _other_fingerprint(expected: str, made: str) -> CorruptWeights:
    message = f"the plan's fingerprint is {expected}, but that of its content is {made}"
    return CorruptWeights(f"{message}; choose another target or --overwrite")


def _metadata(plan: Plan) -> dict[str, str]:
    values = {
        "plan_version": plan.version,
        "fingerprint": plan.fingerprint,
        "code": plan.code,
        "kept_reasons": _digest_of_reasons(plan.shards),
        "source": plan.source,
        "config": plan.config,
        "aliases": plan.aliases,
        "compression": plan.compression,
        "sidecars": list(plan.sidecars),
        "notes": list(plan.notes),
        "side_inputs": plan.side_inputs,
        "side_tensors": side_tensors(plan.shards, redact),
        "left_out": plan.left_out,
    }
    return {_PREFIX + name: json.dumps(value) for name, value in values.items()}


def _digest_of_reasons(shards: Iterable[Shard]) -> str:
    """xxh3_128, hex, of the kept_reason column. Texts for people are in no fingerprint, but a flipped bit has to be
    noticed in them too."""
    state = xxhash.xxh3_128()
    for shard in shards:
        state.update("\0".join(block.kept_reason or "" for block in shard.blocks).encode())
    return str(state.hexdigest())


def _read_metadata(table: pa.Table) -> dict[str, Any]:
    """The plan's metadata, of a version that this release reads."""
    try:
        raw = {key.decode(): value for key, value in (table.schema.metadata or {}).items()}
        version = parse_json(raw[f"{_PREFIX}plan_version"])
        if version > PLAN_VERSION:
            made = f"plan_version is {version}, this release reads up to {PLAN_VERSION}"
            raise InvalidCheckpoint(f"{made}; update arrowquant-dist")
        return _parse_metadata(_DEFAULTS | (version1.METADATA | raw if version == version1.VERSION else raw))
    except (KeyError, TypeError, ValueError) as error:
        message = "the plan's metadata is damaged; choose another target or --overwrite"
        raise CorruptWeights(f"{message} ({error!r})") from error


def _parse_metadata(raw: Mapping[str, bytes]) -> dict[str, Any]:
    """The metadata's values. Raises KeyError, TypeError or ValueError for what `_metadata` would not have written."""
    metadata = {name: parse_json(raw[_PREFIX + name]) for name in _METADATA_TYPES}
    for name, kind in _METADATA_TYPES.items():
        if not isinstance(metadata[name], kind):
            raise TypeError(f"{name} is not of type {kind.__name__}")
    if metadata["plan_version"] not in _READERS:
        raise ValueError(f"there is no version {metadata['plan_version']}")
    for source in (metadata["source"], *metadata["side_inputs"].values()):
        if not all("uri" in file for file in source_files(source)):
            raise ValueError("a source file has no uri")
    if not all(isinstance(why, str) for why in metadata["left_out"].values()):
        raise ValueError("left_out has a reason that is not a string")
    metadata["side_tensors"] = parse_side_tensors(metadata["side_tensors"])
    return metadata
