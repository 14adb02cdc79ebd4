"""What people should know of a finished run, as far as only its values could tell."""

from __future__ import annotations

from collections.abc import Sequence

from arrowquant_dist.errors import counted, have, shortened
from arrowquant_dist.plan import Plan, too_wide_notes
from arrowquant_dist.reduce.layers import LayerMetrics

_NAMED = 20


def value_notes(layers: Sequence[LayerMetrics], plan: Plan) -> tuple[str, ...]:
    """Notes about the number of layers that keep the source's codes, about each layer that holds NaN or inf, and about
    layers that were asked for in 16 bits and could not be stored so."""
    return (*_kept_codes(layers), *_non_finite(layers), *_wider_than_asked(layers, plan))


def _kept_codes(layers: Sequence[LayerMetrics]) -> list[str]:
    kept = sum(layer.keeps_codes for layer in layers)
    if not kept:
        return []
    these = f"{counted(kept, 'layer')} {have(kept)}"
    return [
        f"{these} the codes, scales and zero points of the source, and so decode to its values: the errors reported "
        "here leave them out, and how far they are from the model before quantization is unknown"
    ]


def _non_finite(layers: Sequence[LayerMetrics]) -> list[str]:
    """Notes about NaN and inf, which only kept layers can hold."""
    counts = ((layer, layer.errors.non_finite) for layer in layers if layer.errors is not None)
    found = [(layer, count) for layer, count in counts if count]
    notes = [
        f"{shortened(layer.layer_name)!r} holds {count} among {counted(layer.params, 'value')}, stored as they are"
        for layer, count in found[:_NAMED]
    ]
    if len(found) > _NAMED:
        more = len(found) - _NAMED
        notes.append(f"{more} more kept layers hold NaN or inf; report/layers.parquet names all of them")
    return notes


def _wider_than_asked(layers: Sequence[LayerMetrics], plan: Plan) -> list[str]:
    asked = {block.layer.name for block in plan.blocks if block.spec.quant_type == "fp16"}
    wider = [
        layer.layer_name
        for layer in layers
        if layer.layer_name in asked and "none" in layer.quant_type.split("+")
    ]
    return too_wide_notes(wider)
