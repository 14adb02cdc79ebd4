"""The places of side tensors, in a plan's metadata by layer. They are no columns, since few plans have any."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from arrowquant_dist.checkpoint.table import Layer
from arrowquant_dist.plan.blocks import RowBlock, Shard


def side_tensors(shards: Iterable[Shard], shown: Callable[[str], str]) -> dict[str, list[list[Any]]]:
    """{layer: [name, shape, dtype, uri, offset, nbytes] of each}. shown: removes from a URI what may be secret."""
    return {
        block.layer.name: [_values(stored, shown) for stored in block.side_tensors]
        for shard in shards
        for block in shard.blocks
        if block.side_tensors
    }


def parse_side_tensors(described: Mapping[str, Sequence[Sequence[Any]]]) -> dict[str, tuple[Layer, ...]]:
    """{layer: its side tensors}. Raises ValueError or TypeError if `described` is not what `side_tensors` made."""
    return {layer: tuple(map(_layer, tensors)) for layer, tensors in described.items()}


def with_side_tensors(shards: Iterable[Shard], found: Mapping[str, tuple[Layer, ...]]) -> tuple[Shard, ...]:
    """The shards, with these side tensors in the blocks of their layers."""

    def with_own(block: RowBlock) -> RowBlock:
        return replace(block, side_tensors=found.get(block.layer.name, ()))

    return tuple(replace(shard, blocks=tuple(map(with_own, shard.blocks))) for shard in shards)


def _values(stored: Layer, shown: Callable[[str], str]) -> list[Any]:
    return [stored.name, list(stored.shape), stored.dtype, shown(stored.uri), stored.offset, stored.nbytes]


def _layer(values: Sequence[Any]) -> Layer:
    name, shape, dtype, uri, offset, nbytes = values
    return Layer(name, tuple(shape), dtype, uri, offset, nbytes)
