"""Quantizes checkpoints that do not fit on one machine into V2 Parquet datasets, and streams them back.

The public names are imported when they are first used, so `import arrowquant_dist` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arrowquant_dist.calibration import Calibration, calibrate
    from arrowquant_dist.config import QuantizationConfig, RunConfig, load_config, presets
    from arrowquant_dist.distillation import Distilled, DistillSettings, distill
    from arrowquant_dist.driver import ArrowQuantizer
    from arrowquant_dist.errors import ArrowQuantError
    from arrowquant_dist.evaluation import Evaluation, choose_by_texts, evaluate
    from arrowquant_dist.export import ExportOptions, export_dataset
    from arrowquant_dist.loader import TensorParallel, WeightLoader
    from arrowquant_dist.models import load_model, load_sentence_transformer, load_tokenizer
    from arrowquant_dist.modules import QuantEmbedding, QuantLinear, QuantWeight, load_codes_into
    from arrowquant_dist.report.finished import Report
    from arrowquant_dist.tensor import QuantizedTensor, quantize_tensor
    from arrowquant_dist.validation import Validation, validate

    __version__: str

__all__ = [
    "ArrowQuantError",
    "ArrowQuantizer",
    "Calibration",
    "DistillSettings",
    "Distilled",
    "Evaluation",
    "ExportOptions",
    "QuantEmbedding",
    "QuantLinear",
    "QuantWeight",
    "QuantizationConfig",
    "QuantizedTensor",
    "Report",
    "RunConfig",
    "TensorParallel",
    "Validation",
    "WeightLoader",
    "__version__",
    "calibrate",
    "choose_by_texts",
    "distill",
    "evaluate",
    "export_dataset",
    "load_codes_into",
    "load_config",
    "load_model",
    "load_sentence_transformer",
    "load_tokenizer",
    "presets",
    "quantize_tensor",
    "validate",
]

_MODULES = {
    "ArrowQuantError": "errors",
    "ArrowQuantizer": "driver",
    "Calibration": "calibration",
    "DistillSettings": "distillation",
    "Distilled": "distillation",
    "Evaluation": "evaluation",
    "ExportOptions": "export",
    "QuantEmbedding": "modules",
    "QuantLinear": "modules",
    "QuantWeight": "modules",
    "QuantizationConfig": "config",
    "QuantizedTensor": "tensor",
    "Report": "report.finished",
    "RunConfig": "config",
    "TensorParallel": "loader",
    "Validation": "validation",
    "WeightLoader": "loader",
    "load_codes_into": "modules",
    "load_config": "config",
    "load_model": "models",
    "load_sentence_transformer": "models",
    "load_tokenizer": "models",
    "calibrate": "calibration",
    "choose_by_texts": "evaluation",
    "distill": "distillation",
    "evaluate": "evaluation",
    "export_dataset": "export",
    "presets": "config",
    "quantize_tensor": "tensor",
    "validate": "validation",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def _version() -> str:
    """The version of the installed package; `0+unknown` for a checkout that is not installed."""
    from importlib import metadata

    try:
        return metadata.version("arrowquant-dist")
    except metadata.PackageNotFoundError:
        return "0+unknown"


def __dir__() -> list[str]:
    return sorted(__all__)
