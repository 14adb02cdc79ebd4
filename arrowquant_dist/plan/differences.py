"""Says in words how two plans differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from arrowquant_dist.encodings.columns import describe
from arrowquant_dist.errors import listed, shortened
from arrowquant_dist.plan.blocks import PLAN_VERSION, Plan, RowBlock
from arrowquant_dist.plan.fingerprint import fingerprint, source_files
from arrowquant_dist.storage.pins import what_differs
from arrowquant_dist.storage.uris import redact

OTHER_CODE = "made by another version of this package's code; finish it with that version"


def differences(before: Plan, now: Plan) -> list[str]:
    """What has changed from `before` to `now`, in a few lines.

    Empty if the fingerprints are equal.
    """
    if before.fingerprint == now.fingerprint:
        return []
    before = _kept_as(now, before)
    code = [] if before.code == now.code else [OTHER_CODE]
    lines = [
        *_of_values(_flat(before.config), _flat(now.config)),
        *_of_values(_place(before), _place(now)),
        *_of_files("source file", _files(before.source), _files(now.source, before.version)),
        *_of_files("side input", _side_files(before), _side_files(now)),
        *_of_items("alias", before.aliases, now.aliases),
        *_of_items("layer", _layers(before), _layers(now)),
    ]
    return [*code, *(lines or _of_items("row blocks of layer", _layout(before), _layout(now)))]


def is_same_work(before: Plan, now: Plan) -> bool:
    """Whether the plans differ at most in the code that carries them out.

    A dataset finished by the one plan is then what the other asks for; but a run begun by the one cannot be completed
    by the other.
    """
    source = _in_words_of(now.source, before.source, before.version)
    sides = {
        field: _in_words_of(now.side_inputs.get(field, {"files": []}), side, before.version)
        for field, side in before.side_inputs.items()
    }
    hashed = (before.aliases, source_files(source), before.compression, now.code, sides)
    return fingerprint(_kept_as(now, before).shards, *hashed) == now.fingerprint


def _kept_as(now: Plan, before: Plan) -> Plan:
    """`before`; if it is of an earlier version, with the specs of `now` for layers that both keep for the same
    reason. Earlier versions stored vectors in 16 bits, and a finished dataset of theirs still counts as finished."""
    if before.version >= PLAN_VERSION:
        return before
    kept = {block.layer.name: block for block in now.blocks if block.kept_reason is not None}

    def as_now(block: RowBlock) -> RowBlock:
        same = kept.get(block.layer.name) if block.kept_reason is not None else None
        if same is None or same.kept_reason != block.kept_reason or same.spec == block.spec:
            return block
        return replace(block, spec=same.spec)

    shards = (replace(shard, blocks=tuple(map(as_now, shard.blocks))) for shard in before.shards)
    return replace(before, shards=tuple(shards))


def _in_words_of(now: Mapping[str, Any], before: Mapping[str, Any], version: int) -> Mapping[str, Any]:
    """`before`, a source in a plan of that version; or `now`, if the older release recorded less about the files and
    everything that it recorded is unchanged."""
    if version >= PLAN_VERSION:
        return before
    known, found = _files(before), _files(now, version)
    same = known.keys() == found.keys() and not any(what_differs(known[uri], found[uri]) for uri in known)
    return now if same else before


def _of_values(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    keys = dict.fromkeys([*before, *now])
    return [
        f"{shortened(key)}: was {shortened(repr(before.get(key)))}, is {shortened(repr(now.get(key)))}"
        for key in keys
        if before.get(key) != now.get(key)
    ]


def _of_items(what: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line per kind of difference, with the first few names."""
    ways = {
        "gone": [name for name in before if name not in now],
        "new": [name for name in now if name not in before],
        "changed": [name for name, value in before.items() if name in now and now[name] != value],
    }
    return [f"{what} {way}: {listed(names)}" for way, names in ways.items() if names]


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    run = config.get("run", {})
    return {**{k: v for k, v in config.items() if k != "run"}, **{f"run.{k}": v for k, v in run.items()}}


def _place(plan: Plan) -> dict[str, Any]:
    return {"source": plan.source.get("uri"), "source format": plan.source.get("format")}


def _of_files(what: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """As `_of_items`, and what has changed about each file."""
    lines = _of_items(what, dict.fromkeys(before), dict.fromkeys(now))
    both = {uri: what_differs(was, now[uri]) for uri, was in before.items() if uri in now}
    changed = [f"{uri} ({', '.join(items)})" for uri, items in both.items() if items]
    return [*lines, f"{what} changed: {listed(changed)}"] if changed else lines


def _files(source: Mapping[str, Any], known_to: int = PLAN_VERSION) -> dict[str, tuple[int, str]]:
    """{uri: (size, version)}. known_to: the plan version of the release that made the source's description; older
    ones lack sidecars."""
    of = source_files(source) if known_to >= PLAN_VERSION else source["files"]
    return {file["uri"]: (file["nbytes"], file["version"]) for file in of}


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
