"""How to quantize (QuantizationConfig, resolved to a QuantSpec for each layer) and how to run it (RunConfig).

YAML in, validated values out.
"""

from arrowquant_dist.config.choices import (
    Activations,
    CompressionName,
    DirectWrites,
    EngineName,
    NonFinite,
    QuantType,
    ScaleDtypeName,
)
from arrowquant_dist.config.load import load_config, parse_config
from arrowquant_dist.config.preset import config_place, preset_file, preset_names, presets
from arrowquant_dist.config.quantization import LayerOverride, QuantizationConfig, check_config
from arrowquant_dist.config.recorded import DISTILLATION_KEY, RUN_KEY, recorded_config
from arrowquant_dist.config.resolve import ResolvedLayer, SpecResolver, resolve_layer
from arrowquant_dist.config.run import RunConfig, check_run
from arrowquant_dist.config.sizes import parse_size
from arrowquant_dist.config.spec import (
    BITS,
    QUANT_TYPES,
    SOURCE,
    TRAINED,
    NotKept,
    QuantSpec,
    half_spec,
    kept_spec,
)
from arrowquant_dist.config.storage import DEFAULT_STORAGE, Storage, Transfer, check_storage

__all__ = [
    "BITS",
    "DEFAULT_STORAGE",
    "DISTILLATION_KEY",
    "QUANT_TYPES",
    "RUN_KEY",
    "SOURCE",
    "TRAINED",
    "Activations",
    "CompressionName",
    "DirectWrites",
    "EngineName",
    "LayerOverride",
    "NonFinite",
    "NotKept",
    "QuantSpec",
    "QuantType",
    "QuantizationConfig",
    "ResolvedLayer",
    "RunConfig",
    "ScaleDtypeName",
    "SpecResolver",
    "Storage",
    "Transfer",
    "check_config",
    "check_run",
    "check_storage",
    "config_place",
    "half_spec",
    "kept_spec",
    "load_config",
    "parse_config",
    "parse_size",
    "preset_file",
    "preset_names",
    "presets",
    "recorded_config",
    "resolve_layer",
]
