"""Configs as plans and manifests have them: how a dataset was written and trained stands beside them there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from arrowquant_dist.config.quantization import QuantizationConfig

RUN_KEY, DISTILLATION_KEY = "run", "distillation"


def recorded_config(values: Mapping[str, Any]) -> QuantizationConfig:
    """The config alone. InvalidConfig as QuantizationConfig.from_dict."""
    own = {key: value for key, value in values.items() if key not in (RUN_KEY, DISTILLATION_KEY)}
    return QuantizationConfig.from_dict(own)
