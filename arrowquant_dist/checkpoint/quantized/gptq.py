"""Layers of GPTQ: bits, inputs and groups follow from shapes, and from what the config says about the module."""

from __future__ import annotations

from arrowquant_dist.checkpoint.quantized.model_config import ModelConfig
from arrowquant_dist.checkpoint.quantized.module_settings import ModuleSettings
from arrowquant_dist.checkpoint.quantized.tensors import Tensors, refuse
from arrowquant_dist.checkpoint.quantized.word_layout import WordLayout
from arrowquant_dist.checkpoint.quantized.word_parts import (
    AGAIN,
    GROUPS,
    WordParts,
    add_layer,
    check_shape,
    group_of,
    places_of,
)
from arrowquant_dist.encodings.gptq import LESS_ONE, WORDS_LESS_ONE, Gptq
from arrowquant_dist.encodings.packed import words_of
from arrowquant_dist.errors import counted


def add_gptq(
    tensors: Tensors, module: WordParts, settings: ModuleSettings, layout: WordLayout, config: ModelConfig
) -> None:
    _check_g_idx(module)
    rows, outputs = module.codes.shape
    if module.groups is None and config.quantization.get("desc_act") is True:
        refuse(f"its config says desc_act, but {module.name}{GROUPS} is missing; {AGAIN}", module.codes)
    bits = _bits(module, settings, layout)
    inputs = rows * 32 // bits if module.groups is None else module.groups.shape[0]
    group = group_of(module, settings, inputs)
    check_shape(module.zeros, (module.scales.shape[0], words_of(outputs, bits)), module)
    check_shape(module.scales, (module.scales.shape[0], outputs), module)
    stored = LESS_ONE if layout.stored_zeros == WORDS_LESS_ONE and 32 % bits else layout.stored_zeros
    g_idx = tensors.place(module.groups) if module.groups is not None else None
    encoding = Gptq(bits, group, *places_of(tensors, module), stored, g_idx)
    tensors.place(module.codes)
    add_layer(tensors, module, (outputs, inputs), encoding, config)


def _bits(module: WordParts, settings: ModuleSettings, layout: WordLayout) -> int:
    """Bits per code, as the config says, else as the shapes tell. Raises InvalidCheckpoint if they disagree, or
    neither tells."""
    fitting = [bits for bits in layout.bits if _fits(module, bits)]
    shapes = f"codes {list(module.codes.shape)} and zeros {list(module.zeros.shape)}"
    if module.groups is not None:
        shapes = f"{shapes} of {counted(module.groups.shape[0], 'input')}"
    if settings.bits is not None and settings.bits not in fitting:
        may_be = (
            f"they have {counted(fitting[0], 'bit')}"
            if len(fitting) == 1
            else "correct it or download them again"
        )
        refuse(
            f"the config says {counted(settings.bits, 'bit')}, which {shapes} can't have; {may_be}",
            module.codes,
        )
    if settings.bits is None and len(fitting) != 1:
        refuse(
            f"{shapes} do not determine how many bits they have; add `bits` to quantization_config",
            module.codes,
        )
    return settings.bits or fitting[0]


def _fits(module: WordParts, bits: int) -> bool:
    rows, outputs = module.codes.shape
    if words_of(outputs, bits) != module.zeros.shape[1]:
        return False
    if module.groups is None:
        return rows * 32 % bits == 0
    return words_of(module.groups.shape[0], bits) == rows


def _check_g_idx(module: WordParts) -> None:
    groups = module.groups
    if groups is not None and (groups.dtype != "int32" or len(groups.shape) != 1 or not groups.nbytes):
        refuse(
            f"{list(groups.shape)} of {groups.dtype} are not the int32 groups of the inputs; {AGAIN}", groups
        )
