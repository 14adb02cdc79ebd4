"""Turns stored tensors into the layers they stand for: finds codes and scales by names, dtypes and config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from arrowquant_dist.checkpoint.table import Layer

if TYPE_CHECKING:
    from arrowquant_dist.checkpoint.quantized.compressed import ReadValues
    from arrowquant_dist.checkpoint.quantized.model_config import ModelConfig
    from arrowquant_dist.checkpoint.quantized.schemes import Schemes
    from arrowquant_dist.checkpoint.quantized.tensors import Tensors

# Dtypes of codes: a model without tensors of these dtypes or names is not examined further.
_CODE_DTYPES = frozenset(
    (
        *("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float4_e2m1fn_x2"),
        *("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64"),
    )
)
_CODE_NAMES = (".W_q", ".Qidxs", ".codes", ".SCB", ".bitmask", ".compressed")  # of any dtype


@dataclass(frozen=True, slots=True)
class FoundLayers:
    """The fields are those of Checkpoint."""

    layers: list[Layer]
    aliases: dict[str, str]
    decoded: dict[str, str]
    left_out: dict[str, str]
    kept: dict[str, str]
    unscaled: dict[str, tuple[str, ...]]
    notes: tuple[str, ...]


def find_quantized(
    layers: Sequence[Layer],
    aliases: Mapping[str, str],
    read_config: Callable[[], ModelConfig],
    read_values: ReadValues,
) -> FoundLayers:
    """Layers and aliases of the files, with codes and scales combined into layers; unchanged if there are none.

    read_config, read_values: called only if tensors look like codes. Raises InvalidCheckpoint for what is
    inconsistent or in a format that can't be decoded, and what these functions raise.
    """
    if not any(layer.dtype in _CODE_DTYPES or layer.name.endswith(_CODE_NAMES) for layer in layers):
        return FoundLayers(list(layers), dict(aliases), {}, {}, {}, {}, ())
    return _put_together(layers, aliases, read_config, read_values)


def _put_together(
    layers: Sequence[Layer],
    aliases: Mapping[str, str],
    read_config: Callable[[], ModelConfig],
    read_values: ReadValues,
) -> FoundLayers:
    # Imported here, since most checkpoints have nothing that looks like codes.
    from arrowquant_dist.checkpoint.quantized.activations import leave_out_scales
    from arrowquant_dist.checkpoint.quantized.comfyui import keep_comfyui
    from arrowquant_dist.checkpoint.quantized.compressed import add_integers
    from arrowquant_dist.checkpoint.quantized.float8 import add_float8
    from arrowquant_dist.checkpoint.quantized.llm_int8 import add_llm_int8
    from arrowquant_dist.checkpoint.quantized.microscaled import add_experts, add_packed
    from arrowquant_dist.checkpoint.quantized.mlx import add_mlx
    from arrowquant_dist.checkpoint.quantized.nvfp4 import add_nvfp4
    from arrowquant_dist.checkpoint.quantized.schemes import read_schemes
    from arrowquant_dist.checkpoint.quantized.tensors import Tensors
    from arrowquant_dist.checkpoint.quantized.undecoded import (
        keep_known_formats,
        keep_unknown,
        refuse_mixtures,
    )
    from arrowquant_dist.checkpoint.quantized.words import add_words

    stored = {layer.name: layer for layer in layers}
    tied = {name: replace(stored[first], name=name) for name, first in aliases.items()}
    config = read_config()
    schemes = read_schemes(config)
    tensors = Tensors({**stored, **tied}, config.dtype)
    # First what looks decodable but is not, then what can be decoded, then what belongs to that, then the rest.
    keep_known_formats(tensors)
    keep_comfyui(tensors, config, read_values)
    add_experts(tensors)
    add_nvfp4(tensors)
    add_packed(tensors)
    add_integers(tensors, schemes, read_values)
    add_words(tensors, config)
    add_mlx(tensors, config)
    add_llm_int8(tensors, config, read_values)
    add_float8(tensors, config, schemes.blocks)
    leave_out_scales(tensors, config)
    keep_unknown(tensors, config)
    refuse_mixtures(tensors, config)
    return _collect(tensors, layers, aliases, schemes)


def _collect(
    tensors: Tensors, layers: Sequence[Layer], aliases: Mapping[str, str], schemes: Schemes
) -> FoundLayers:
    """The layers in the order of `layers`. Names that shared their codes are tied if they share their scales too."""
    from arrowquant_dist.checkpoint.quantized.notes import found_notes
    from arrowquant_dist.checkpoint.quantized.unscaled import find_unscaled

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
    return FoundLayers(
        kept,
        tied,
        tensors.parts,
        tensors.left_out,
        reasons,
        find_unscaled(tensors),
        found_notes(tensors, schemes),
    )


def _stays(name: str, tensors: Tensors) -> bool:
    """Whether a tensor is, or has become, a layer, and is not just a part of another."""
    return name in tensors.layers or not (name in tensors.parts or name in tensors.left_out)
