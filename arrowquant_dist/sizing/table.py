"""The choice as a config, which makes the same dataset without asking for a size, and can be read, kept and changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from arrowquant_dist.config import LayerOverride, QuantizationConfig, QuantSpec
from arrowquant_dist.config.patterns import exactly
from arrowquant_dist.config.sizes import rounded_size
from arrowquant_dist.errors import counted
from arrowquant_dist.sizing.measure import Measured

FOUND = "found"  # key in chosen_for: the quality that the table has


def chosen_config(config: QuantizationConfig, specs: Mapping[str, QuantSpec]) -> QuantizationConfig:
    """`config` with an override for each layer in place of what it asked for, which is kept as `chosen_for`. specs:
    {layer: spec} of the layers that were chosen for."""
    overrides = (*config.overrides, *(_override(name, spec) for name, spec in specs.items()))
    asked = config.to_dict()
    return replace(config, size=None, min_quality=None, texts=None, overrides=overrides, chosen_for=asked)


def ways_in_short(table: Mapping[str, Measured]) -> str:
    """A summary of a table for people: number and size of the layers stored in each way, the largest first."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for one in table.values():
        found[_way(one.spec)].append(one.nbytes)
    ranked = sorted(found.items(), key=lambda way: (-sum(way[1]), way[0]))
    return ", ".join(
        f"{name} {counted(len(sizes), 'layer')} {rounded_size(sum(sizes))}" for name, sizes in ranked
    )


def _way(spec: QuantSpec) -> str:
    if not spec.is_quantized:
        return spec.quant_type
    if spec.step:
        return f"{spec.quant_type} {spec.method} in steps"
    scales = (
        f"g{spec.group_size}"
        if spec.stored_group_size
        else "by row"
        if spec.quant_axis == 0
        else "per tensor"
    )
    return f"{spec.quant_type} {spec.method} {scales}"


def is_chosen_for(values: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    """Whether a table was chosen for `asked`. values: the table's config, as a plan has it; FOUND in it is ignored."""
    known = values.get("chosen_for")
    if not isinstance(known, Mapping):
        return False
    return {key: value for key, value in known.items() if key != FOUND} == asked


def _override(name: str, spec: QuantSpec) -> LayerOverride:
    if not spec.is_quantized:
        return LayerOverride(exactly(name), quant_type="fp16")
    chosen = {
        "layers": exactly(name),
        "quant_type": spec.quant_type,
        "per_channel": spec.per_channel,
        "group_size": None if spec.per_channel else spec.group_size,
        "symmetric": spec.symmetric,
        "method": spec.method,
        "step": spec.step or None,
        "row_exponent": spec.row_exponent or None,
        "rate": spec.rate or None,
    }
    return LayerOverride.from_dict({key: value for key, value in chosen.items() if value is not None})
