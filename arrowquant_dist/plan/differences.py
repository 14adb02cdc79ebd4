"""Why two plans are not the same, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from arrowquant_dist.checkpoint.encodings.columns import describe
from arrowquant_dist.plan.blocks import Plan, RowBlock
from arrowquant_dist.plan.fingerprint import fingerprint
from arrowquant_dist.storage.uris import redact

OTHER_CODE = "made by another version of this package's code; finish it with that version"
_SHOWN = 3


def differences(before: Plan, now: Plan) -> list[str]:
    """What has changed from `before` to `now`, in a few lines.

    Empty for equal fingerprints.
    """
    if before.fingerprint == now.fingerprint:
        return []
    code = [] if before.code == now.code else [OTHER_CODE]
    lines = [
        *_of_values(_flat(before.config), _flat(now.config)),
        *_of_values(_place(before), _place(now)),
        *_of_items("source file", _files(before.source), _files(now.source)),
        *_of_items("side input", _side_files(before), _side_files(now)),
        *_of_items("alias", before.aliases, now.aliases),
        *_of_items("layer", _layers(before), _layers(now)),
    ]
    return [*code, *(lines or _of_items("row blocks of layer", _layout(before), _layout(now)))]


def is_same_work(before: Plan, now: Plan) -> bool:
    """Whether the plans differ in the code that carries them out at most.

    A dataset that the one has finished is then what the other asks for; a run that the one has begun is still not for
    the other to complete.
    """
    hashed = (before.aliases, before.source["files"], before.compression, now.code, before.side_inputs)
    return fingerprint(before.shards, *hashed) == now.fingerprint


def _of_values(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    keys = dict.fromkeys([*before, *now])
    return [
        f"{key}: was {before.get(key)!r}, is {now.get(key)!r}"
        for key in keys
        if before.get(key) != now.get(key)
    ]


def _of_items(what: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line for each way to differ, with the first few names."""
    ways = {
        "gone": [name for name in before if name not in now],
        "new": [name for name in now if name not in before],
        "changed": [name for name, value in before.items() if name in now and now[name] != value],
    }
    return [f"{what} {way}: {_some(names)}" for way, names in ways.items() if names]


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    run = config.get("run", {})
    return {**{k: v for k, v in config.items() if k != "run"}, **{f"run.{k}": v for k, v in run.items()}}


def _place(plan: Plan) -> dict[str, Any]:
    return {"source": plan.source.get("uri"), "source format": plan.source.get("format")}


def _files(source: Mapping[str, Any]) -> dict[str, Any]:
    return {file["uri"]: (file["nbytes"], file["version"]) for file in source.get("files", ())}


def _side_files(plan: Plan) -> dict[str, Any]:
    return {uri: file for side in plan.side_inputs.values() for uri, file in _files(side).items()}


def _layers(plan: Plan) -> dict[str, Any]:
    return {block.layer.name: _identity(block) for block in plan.blocks}


def _identity(block: RowBlock) -> tuple[Any, ...]:
    layer = block.layer
    encoding = describe(layer.encoding, redact)
    return layer.shape, layer.dtype, layer.offset, layer.nbytes, encoding, block.spec


def _layout(plan: Plan) -> dict[str, list[tuple[int, int, int]]]:
    layout: dict[str, list[tuple[int, int, int]]] = {}
    for shard in plan.shards:
        for block in shard.blocks:
            layout.setdefault(block.layer.name, []).append((shard.index, block.row_start, block.rows))
    return layout


def _some(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return ", ".join(every[:_SHOWN]) + more
