"""The formats by name, each imported when it is needed."""

from __future__ import annotations

from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.export.format import ExportFormat
from arrowquant_dist.export.options import EXPORT_FORMATS, ExportOptions


def format_of(options: ExportOptions) -> ExportFormat:
    """Returns the format of the options. Raises InvalidConfig for an unknown format, or an option that it lacks."""
    if options.format == "safetensors":
        from arrowquant_dist.export.decoded import DecodedSafetensors

        _refuse_options(options, activations=options.activations)
        return DecodedSafetensors()
    if options.format == "v1":
        from arrowquant_dist.export.v1 import V1Parquet

        _refuse_options(options, activations=options.activations)
        return V1Parquet()
    if options.format == "gguf":
        from arrowquant_dist.export.gguf.model import Gguf

        return Gguf.of(options)
    if options.format == "compressed-tensors":
        from arrowquant_dist.export.compressed_tensors.draft import CompressedTensors

        if options.source is not None and not options.requantize:
            raise InvalidConfig("source: is where --requantize takes values from; give both, or neither")
        return CompressedTensors(options.activations == "int8", options.requantize)
    raise InvalidConfig(f"format: {options.format!r} is not one of {', '.join(EXPORT_FORMATS)}")


def _refuse_options(options: ExportOptions, **given: object) -> None:
    """Raises InvalidConfig for given options that the format has no use for."""
    for name, value in given.items():
        if value:
            raise InvalidConfig(f"{name}: the format {options.format} has no such option; leave it out")
    if options.requantize or options.source is not None:
        raise InvalidConfig(
            f"requantize: the format {options.format} writes every layer as it is; leave it out"
        )
