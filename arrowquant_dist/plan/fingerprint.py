"""One hash over everything that decides a dataset's bytes and their distribution over shards."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import xxhash

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.encodings.columns import describe
from arrowquant_dist.format.schema import SCHEMA_VERSION
from arrowquant_dist.plan.blocks import PLAN_VERSION, Shard
from arrowquant_dist.storage.uris import redact

VERSION_2 = 2  # file versions lacked ctime and inode, and the fingerprint did not cover sidecars


def source_files(source: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """All objects that a plan's source, or a side input, consists of."""
    return [*source["files"], *source.get("sidecars", ())]


def fingerprint(
    shards: Iterable[Shard],
    aliases: Mapping[str, str],
    files: Iterable[Mapping[str, Any]],
    compression: str,
    code: str,
    side_inputs: Mapping[str, Mapping[str, Any]],
    version: int = PLAN_VERSION,
) -> str:
    """`xxh3_128:<hex>` over lines of canonical JSON: versions, code, source files and aliases; each shard's row
    blocks; the specs; and files and places of side inputs, if there are any. version: PLAN_VERSION, or 2.

    It does not cover the engine, workers, addresses or credentials, nor texts that only people read.
    """
    head = {
        "plan_version": version,
        "schema_version": SCHEMA_VERSION,
        "code": code,
        "compression": compression,
        "aliases": dict(aliases),
        "files": _sorted(files),
    }
    if side_inputs:
        head["side_files"] = {field: _sorted(source_files(side)) for field, side in side_inputs.items()}
    state = xxhash.xxh3_128(_json(head).encode())
    shown = lru_cache(maxsize=None)(redact)
    specs: dict[QuantSpec, int] = {}  # numbered as they appear
    numbers: dict[
        int, int
    ] = {}  # by id: equal specs of a plan are few objects, and hashing one costs more than the rest
    encoding, described = None, {}  # of the previous block: most neighbours share it
    for shard in shards:
        rows = []
        for block in shard.blocks:
            layer, spec = block.layer, numbers.get(id(block.spec))
            if spec is None:
                spec = numbers[id(block.spec)] = specs.setdefault(block.spec, len(specs))
            where = (layer.name, layer.shape, layer.dtype, shown(layer.uri), layer.offset, layer.nbytes)
            if layer.encoding is not encoding:
                encoding, described = layer.encoding, describe(layer.encoding, shown)
            row: tuple[Any, ...] = (*where, described, block.row_start, block.rows, spec)
            if block.side_tensors:
                row += tuple((shown(t.uri), t.offset, t.nbytes) for t in block.side_tensors)
            rows.append(row)
        state.update(f"\n{_json([shard.index, rows])}".encode())
    state.update(f"\n{_json([spec.to_dict() for spec in specs])}".encode())
    return f"xxh3_128:{state.hexdigest()}"


def _sorted(files: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(files, key=lambda file: str(file["uri"]))


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
