"""A config with all values that are derived from it, for people to read."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from arrowquant_dist.config.quantization import QuantizationConfig
from arrowquant_dist.config.run import STORAGE_OPTIONS, RunConfig


def settled(config: QuantizationConfig, run: RunConfig) -> dict[str, Any]:
    """Keys as in YAML with their values, defaults included: the method that follows from quant_type where none is
    given, sizes in bytes. Storage options, which may hold secrets, are left out."""
    values = config.to_dict()
    if "quant_type" in values and values["method"] is None and values["quant_type"] != "none":
        values["method"] = config.spec().method
    return {**{name: value for name, value in values.items() if value is not None}, "run": settled_run(run)}


def settled_run(run: RunConfig) -> dict[str, Any]:
    """The part of `settled` that is about the run."""
    return {name: value for name, value in asdict(run).items() if name not in STORAGE_OPTIONS}
