"""A plan layer by layer: how each layer is stored, by which rule, and which layers are alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from arrowquant_dist.config.patterns import matcher, only_name, starred
from arrowquant_dist.config.spec import QuantSpec
from arrowquant_dist.errors import listed
from arrowquant_dist.plan.blocks import Plan, RowBlock
from arrowquant_dist.plan.sizes import expected_nbytes

DEFAULT_RULE = "the default"


@dataclass(frozen=True, slots=True)
class StoredSizes:
    """Estimated sizes in bytes. layers: {layer: size of its values in the parts}. parts_nbytes: all part files.
    too_wide: layers that are asked for in 16 bits, but hold values, among those that were looked at, that fp16 cannot
    hold, so that they stay as they are."""

    layers: Mapping[str, int]
    parts_nbytes: int
    too_wide: Set[str] = frozenset()


@dataclass(frozen=True, slots=True)
class PlannedLayer:
    """How one layer is going to be stored.

    quant_type: `none` also for a layer asked for in 16 bits that fp16 cannot hold, if that was found out.
    rule: why it is stored so: the default, an override, or the reason for which it is kept.
    group_size: values that share a scale, 0 if a row or the whole layer does.
    source_nbytes: size in the source's dtype, or as stored in the source for codes that are kept.
    expected_nbytes: size before compression.
    stored_nbytes: estimated size after compression; None if not estimated.
    encoding: the format of the source's codes if they are kept, else None.
    """

    layer_name: str
    shape: tuple[int, ...]
    dtype: str
    params: int
    quant_type: str
    method: str
    group_size: int
    symmetric: bool
    per_channel: bool
    rule: str
    kept_reason: str | None
    row_blocks: int
    source_nbytes: int
    expected_nbytes: int
    stored_nbytes: int | None
    encoding: str | None

    @property
    def pattern(self) -> str:
        """The name with `*` for each number of a block or a part."""
        return starred(self.layer_name)

    @property
    def way(self) -> str:
        """The storage in short, for people: `int4 g128`, `int8 a row`, `fp16`."""
        if self.kept_reason is not None or self.quant_type in ("none", "fp16"):
            return self.quant_type
        scales = "a row" if self.per_channel else f"g{self.group_size}" if self.group_size else "a tensor"
        return f"{self.quant_type} {scales}"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "shape": list(self.shape)}


@dataclass(frozen=True, slots=True)
class AlikeLayers:
    """Layers whose names differ only in their block numbers and that are stored alike by the same rule."""

    pattern: str
    way: str
    rule: str
    layers: tuple[PlannedLayer, ...]

    @property
    def expected_nbytes(self) -> int:
        return sum(layer.expected_nbytes for layer in self.layers)

    @property
    def stored_nbytes(self) -> int | None:
        sizes = [layer.stored_nbytes for layer in self.layers if layer.stored_nbytes is not None]
        return sum(sizes) if len(sizes) == len(self.layers) else None


def planned_layers(plan: Plan, stored: StoredSizes | None) -> tuple[PlannedLayer, ...]:
    """The layers, in the order of their bytes in the source. stored: estimated sizes, if they are known."""
    rules = _Rules(plan.config)
    by_layer = groupby(plan.blocks, key=lambda block: block.layer.name)
    return tuple(_planned(tuple(blocks), rules, stored) for _, blocks in by_layer)


def alike_layers(layers: Sequence[PlannedLayer]) -> tuple[AlikeLayers, ...]:
    """Groups layers that are alike, in the order of each group's first layer."""
    groups: dict[tuple[str, str, str], list[PlannedLayer]] = {}
    for layer in layers:
        groups.setdefault((layer.pattern, layer.way, layer.rule), []).append(layer)
    return tuple(
        AlikeLayers(alike[0].layer_name if len(alike) == 1 else pattern, way, rule, tuple(alike))
        for (pattern, way, rule), alike in groups.items()
    )


def too_wide_notes(layers: Sequence[str]) -> list[str]:
    """A note about layers that were asked for in 16 bits and have values that fp16 cannot hold, if there are any."""
    if not layers:
        return []
    return [
        f"16 bits were asked for, but fp16 cannot hold all values with 10 bits of precision: {listed(layers)}; "
        "the row blocks with such values keep the source's dtype"
    ]


def _planned(blocks: Sequence[RowBlock], rules: _Rules, stored: StoredSizes | None) -> PlannedLayer:
    first = blocks[0]
    layer, spec = first.layer, first.spec
    stays = stored is not None and layer.name in stored.too_wide
    given = sum(block.given_nbytes for block in blocks)
    return PlannedLayer(
        layer_name=layer.name,
        shape=layer.shape,
        dtype=layer.dtype,
        params=sum(block.num_params for block in blocks),
        quant_type="none" if stays else spec.quant_type,
        method=spec.method,
        group_size=spec.stored_group_size,
        symmetric=spec.symmetric,
        per_channel=spec.is_quantized and spec.per_channel,
        rule=rules.of(layer.name, spec, first.kept_reason),
        kept_reason=first.kept_reason,
        row_blocks=len(blocks),
        source_nbytes=given,
        expected_nbytes=given if stays else sum(map(expected_nbytes, blocks)),
        stored_nbytes=stored.layers.get(layer.name) if stored is not None else None,
        encoding=layer.encoding.label if spec.keeps_codes else None,
    )


class _Rules:
    """Finds the rule for a layer: the last override of the config that matches, or the default."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        overrides = [override["layers"] for override in config.get("overrides") or ()]
        self._named = {name for name in map(only_name, overrides) if name is not None}
        self._patterns = [(p, matcher(p)) for p in reversed(overrides) if only_name(p) is None]
        self._chosen = config.get("chosen_for")

    def of(self, name: str, spec: QuantSpec, kept_reason: str | None) -> str:
        if kept_reason is not None:
            return kept_reason
        if name in self._named:
            return "chosen for the size" if self._chosen else "an override of its own"
        found = next((pattern for pattern, matches in self._patterns if matches(name)), None)
        if found is not None:
            return f"override {found}"
        return "keep_codes" if spec.keeps_codes else DEFAULT_RULE
