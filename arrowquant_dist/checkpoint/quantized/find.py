"""Stored tensors → the layers they stand for: finds codes and scales by their names, dtypes and config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from arrowquant_dist.checkpoint.table import Layer
from arrowquant_dist.errors import listed

if TYPE_CHECKING:
    from arrowquant_dist.checkpoint.quantized.compressed import ReadValues
    from arrowquant_dist.checkpoint.quantized.model_config import ModelConfig
    from arrowquant_dist.checkpoint.quantized.tensors import Tensors

_MARKS = (
    *("_scale_inv", "_scale", ".scale", "_scales", ".scales", "_packed"),  # decoded
    *(".qweight", ".qzeros", ".SCB", ".weight_format", ".biases"),  # decoded
    *(".B", ".absmax", ".bitmask", ".compressed"),  # refused, or kept with a note
)
_INTEGERS = ("int8", "uint8", "int32")


@dataclass(frozen=True, slots=True)
class FoundLayers:
    """As in Checkpoint."""

    layers: list[Layer]
    aliases: dict[str, str]
    decoded: dict[str, str]
    left_out: dict[str, str]
    kept: dict[str, str]
    notes: tuple[str, ...]


def find_quantized(
    layers: Sequence[Layer],
    aliases: Mapping[str, str],
    read_config: Callable[[], ModelConfig],
    read_values: ReadValues,
) -> FoundLayers:
    """Layers and aliases of the files, with codes and scales put together; as they are where there are none.

    read_config, read_values: called where tensors look like codes. Raises InvalidCheckpoint for what can't be true
    or is of a format that can't be decoded, and what they raise.
    """
    if not any(layer.name.endswith(_MARKS) for layer in layers):
        return FoundLayers(list(layers), dict(aliases), {}, {}, {}, ())
    return _put_together(layers, aliases, read_config, read_values)


def _put_together(
    layers: Sequence[Layer],
    aliases: Mapping[str, str],
    read_config: Callable[[], ModelConfig],
    read_values: ReadValues,
) -> FoundLayers:
    # Of no use to most checkpoints, which have nothing that looks like codes.
    from arrowquant_dist.checkpoint.quantized.compressed import add_integers
    from arrowquant_dist.checkpoint.quantized.float8 import add_float8
    from arrowquant_dist.checkpoint.quantized.llm_int8 import add_llm_int8
    from arrowquant_dist.checkpoint.quantized.microscaled import add_experts, add_packed
    from arrowquant_dist.checkpoint.quantized.mlx import add_mlx
    from arrowquant_dist.checkpoint.quantized.schemes import read_schemes
    from arrowquant_dist.checkpoint.quantized.tensors import Tensors
    from arrowquant_dist.checkpoint.quantized.words import add_words

    stored = {layer.name: layer for layer in layers}
    tied = {name: replace(stored[first], name=name) for name, first in aliases.items()}
    config = read_config()
    schemes = read_schemes(config)
    tensors = Tensors({**stored, **tied}, config.dtype)
    add_experts(tensors)
    add_packed(tensors)
    add_integers(tensors, schemes, read_values)
    add_words(tensors, config)
    add_mlx(tensors, config)
    add_llm_int8(tensors, config, read_values)
    add_float8(tensors, config, schemes.blocks)
    return _collect(tensors, layers, aliases)


def _collect(tensors: Tensors, layers: Sequence[Layer], aliases: Mapping[str, str]) -> FoundLayers:
    """In the order of `layers`. Names that shared their codes are tied where they share their scales as well."""
    kept = [tensors.layers.get(layer.name, layer) for layer in layers if _stays(layer.name, tensors)]
    tied: dict[str, str] = {}
    for name, first in aliases.items():
        if not _stays(name, tensors):
            continue
        own, stored = (tensors.layers.get(n, tensors.by_name[n]) for n in (name, first))
        if _stays(first, tensors) and replace(own, name=stored.name) == stored:
            tied[own.name] = stored.name
        else:
            kept.append(own)
    reasons = {tied.get(name, name): why for name, why in tensors.kept.items()}
    return FoundLayers(kept, tied, tensors.parts, tensors.left_out, reasons, _notes(kept, tensors))


def _notes(layers: Sequence[Layer], tensors: Tensors) -> tuple[str, ...]:
    from arrowquant_dist.checkpoint.quantized.notes import found_notes

    return (*found_notes(tensors), *_unknown_notes(layers, tensors))


def _unknown_notes(layers: Sequence[Layer], tensors: Tensors) -> tuple[str, ...]:
    """About integers that look like another format's codes: they stay what they are."""
    codes = [layer.name for layer in layers if layer.dtype in _INTEGERS and _looks_coded(layer.name, tensors)]
    if not codes:
        return ()
    return (
        f"{listed(codes)}: integers that look like codes of a quantizer whose format is not decoded "
        "(GPTQ, AWQ, bitsandbytes …), kept as they are; to quantize the weights, give the model they were made from",
    )


def _looks_coded(name: str, tensors: Tensors) -> bool:
    beside = (f"{name}.absmax", f"{name}_scale", f"{name}_scale_inv")
    return name.endswith((".qweight", "_packed")) or any(other in tensors.by_name for other in beside)


def _stays(name: str, tensors: Tensors) -> bool:
    """Whether a tensor is a layer, or has become one, and is not only a part of another."""
    return name in tensors.layers or not (name in tensors.parts or name in tensors.left_out)
