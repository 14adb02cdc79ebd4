"""Configs in plans and manifests, where settings of the run and of the distillation stand beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from arrowquant_dist.config.quantization import QuantizationConfig

RUN_KEY, DISTILLATION_KEY = "run", "distillation"


def recorded_config(values: Mapping[str, Any]) -> QuantizationConfig:
    """The config alone, without those. Raises InvalidConfig, as QuantizationConfig.from_dict does."""
    own = {key: value for key, value in values.items() if key not in (RUN_KEY, DISTILLATION_KEY)}
    return QuantizationConfig.from_dict(own)
