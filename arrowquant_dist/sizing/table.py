"""What was chosen, as a config: it makes the same dataset without a size, and can be read, kept and changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from arrowquant_dist.config import LayerOverride, QuantizationConfig, QuantSpec
from arrowquant_dist.config.patterns import exactly


def chosen_config(config: QuantizationConfig, specs: Mapping[str, QuantSpec]) -> QuantizationConfig:
    """`config` without its size, with an override for each layer. specs: by layer, of those that had none."""
    overrides = (*config.overrides, *(_override(name, spec) for name, spec in specs.items()))
    return replace(config, size=None, overrides=overrides)


def _override(name: str, spec: QuantSpec) -> LayerOverride:
    if not spec.is_quantized:
        return LayerOverride(exactly(name), quant_type="fp16")
    return LayerOverride(
        exactly(name),
        quant_type=spec.quant_type,
        per_channel=spec.per_channel,
        group_size=None if spec.per_channel else spec.group_size,
        symmetric=spec.symmetric,
        method=spec.method,
        step=spec.step or None,
        row_exponent=spec.row_exponent or None,
        rate=spec.rate or None,
    )
