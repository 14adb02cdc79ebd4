"""One hash over everything that decides a dataset's bytes, and which shard has them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import xxhash

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.plan.blocks import Shard
from arrowquant_dist.store.files import redact
from arrowquant_dist.store.schema import SCHEMA_VERSION

# Raise it whenever an equal plan would make other bytes than before (kernels, layout): a run that was begun
# by an older version must not be completed by a newer one.
PLAN_VERSION = 1


def fingerprint(
    shards: Iterable[Shard], aliases: Mapping[str, str], files: Iterable[Mapping[str, Any]], compression: str
) -> str:
    """`xxh3_128:<hex>` over lines of canonical JSON: versions, source files, aliases, then each row block.

    Neither engine, workers nor addresses are in it, nor credentials, nor what only people read.
    """
    head = {
        "plan_version": PLAN_VERSION,
        "schema_version": SCHEMA_VERSION,
        "compression": compression,
        "aliases": dict(aliases),
        "files": sorted(files, key=lambda file: str(file["uri"])),
    }
    state = xxhash.xxh3_128(_json(head))
    shown = lru_cache(maxsize=None)(redact)
    specs: dict[QuantSpec, str] = {}
    for shard in shards:
        lines = []
        for block in shard.blocks:
            layer, spec = block.layer, block.spec
            if spec not in specs:
                specs[spec] = _json(spec.to_dict())
            where = [layer.name, layer.shape, layer.dtype, shown(layer.uri), layer.offset, layer.nbytes]
            rows = [layer.encoding, shard.index, block.row_start, block.rows]
            lines.append(f"\n{_json(where + rows)}{specs[spec]}")
        state.update("".join(lines))
    return f"xxh3_128:{state.hexdigest()}"


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
