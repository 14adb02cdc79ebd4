"""Layers of AWQ, in the layouts GEMM and GEMV."""

from __future__ import annotations

from arrowquant_dist.checkpoint.quantized.model_config import ModelConfig
from arrowquant_dist.checkpoint.quantized.module_settings import WHOLE_ROW, ModuleSettings
from arrowquant_dist.checkpoint.quantized.tensors import Tensors, refuse
from arrowquant_dist.checkpoint.quantized.word_parts import (
    WordParts,
    add_layer,
    check_shape,
    group_of,
    places_of,
    refuse_groups,
)
from arrowquant_dist.encodings.awq import Awq, AwqRows

_FIELDS = 8  # codes per word


def add_gemm(tensors: Tensors, module: WordParts, settings: ModuleSettings, config: ModelConfig) -> None:
    inputs, words = module.codes.shape
    outputs = words * _FIELDS
    group = group_of(module, settings, inputs)
    check_shape(module.zeros, (module.scales.shape[0], words), module)
    check_shape(module.scales, (module.scales.shape[0], outputs), module)
    tensors.place(module.codes)
    add_layer(tensors, module, (outputs, inputs), Awq(group, *places_of(tensors, module)), config)


def add_gemv(tensors: Tensors, module: WordParts, settings: ModuleSettings, config: ModelConfig) -> None:
    """Adds a layer stored as rows of codes, zeros and scales. Zeros and scales fill whole words, so there may be more
    of them than groups."""
    outputs, words = module.codes.shape
    inputs = words * _FIELDS
    if settings.group_size is None:
        refuse(
            "its group size can't be derived from its shape; add `group_size` to quantization_config",
            module.codes,
        )
    group = inputs if settings.group_size == WHOLE_ROW else settings.group_size
    zero_words = module.zeros.shape[1]
    if zero_words * _FIELDS < -(-inputs // group):
        refuse_groups(module, inputs, group)
    check_shape(module.zeros, (outputs, zero_words), module)
    check_shape(module.scales, (outputs, zero_words * _FIELDS), module)
    tensors.place(module.codes)
    add_layer(tensors, module, (outputs, inputs), AwqRows(group, *places_of(tensors, module)), config)
