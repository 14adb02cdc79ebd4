"""Why two plans are not the same, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from arrowquant_dist.plan.blocks import Plan, RowBlock

_SHOWN = 3


def differences(here: Plan, there: Plan) -> list[str]:
    """What `there` has that `here` hasn't and the other way round, in a few lines.

    Empty for equal fingerprints.
    """
    if here.fingerprint == there.fingerprint:
        return []
    lines = [
        *_of_values(_flat(here.config), _flat(there.config)),
        *_of_values(_place(here), _place(there)),
        *_of_items("source file", _files(here), _files(there)),
        *_of_items("alias", here.aliases, there.aliases),
        *_of_items("layer", _layers(here), _layers(there)),
    ]
    if not lines:
        lines = _of_items("row blocks of layer", _layout(here), _layout(there))
    return lines or ["the plans were made by different versions of this package"]


def _of_values(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    keys = dict.fromkeys([*here, *there])
    return [
        f"{key}: {here.get(key)!r} here, {there.get(key)!r} there"
        for key in keys
        if here.get(key) != there.get(key)
    ]


def _of_items(what: str, here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """One line for each way to differ, with the first few names."""
    ways = {
        "only here": [name for name in here if name not in there],
        "only there": [name for name in there if name not in here],
        "changed": [name for name, value in here.items() if name in there and there[name] != value],
    }
    return [f"{what} {way}: {_some(names)}" for way, names in ways.items() if names]


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    run = config.get("run", {})
    return {**{k: v for k, v in config.items() if k != "run"}, **{f"run.{k}": v for k, v in run.items()}}


def _place(plan: Plan) -> dict[str, Any]:
    return {"source": plan.source.get("uri"), "source format": plan.source.get("format")}


def _files(plan: Plan) -> dict[str, Any]:
    return {file["uri"]: (file["nbytes"], file["version"]) for file in plan.source.get("files", ())}


def _layers(plan: Plan) -> dict[str, Any]:
    return {block.layer.name: _identity(block) for block in plan.blocks}


def _identity(block: RowBlock) -> tuple[Any, ...]:
    layer = block.layer
    return layer.shape, layer.dtype, layer.offset, layer.nbytes, layer.encoding, block.spec


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
