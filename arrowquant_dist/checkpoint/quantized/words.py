"""Integer codes of GPTQ and AWQ: X.qweight, X.qzeros, X.scales, and X.g_idx if groups are not runs of inputs.

Layouts that can't be decoded stay as they are, with everything that belongs to them.
"""

from __future__ import annotations

from collections.abc import Iterator

from arrowquant_dist.checkpoint.quantized.awq import add_gemm, add_gemv
from arrowquant_dist.checkpoint.quantized.gptq import add_gptq
from arrowquant_dist.checkpoint.quantized.model_config import ModelConfig
from arrowquant_dist.checkpoint.quantized.module_settings import settings_of
from arrowquant_dist.checkpoint.quantized.tensors import Tensors, refuse
from arrowquant_dist.checkpoint.quantized.word_layout import (
    AWQ_GEMM,
    AWQ_GEMV,
    AWQ_METHOD,
    GPTQ_WORDS,
    WORD_METHODS,
    WordLayout,
)
from arrowquant_dist.checkpoint.quantized.word_parts import (
    AGAIN,
    CODES,
    GROUPS,
    SCALES,
    ZEROS,
    WordParts,
    check_words,
)
from arrowquant_dist.encodings.awq import AWQ_BITS
from arrowquant_dist.errors import counted

_MARLIN = (".B", ".s")  # AutoGPTQ's names for codes and scales that are packed for Marlin


def add_words(tensors: Tensors, config: ModelConfig) -> None:
    """Adds the layers of GPTQ's and AWQ's codes, and keeps those of layouts that can't be decoded.

    Raises InvalidCheckpoint for codes whose parts are missing or do not fit each other or the config.
    """
    if config.method not in (*WORD_METHODS, ""):
        return
    layout = WordLayout.of(config)
    unknown = layout.unknown or _scaled_activations(tensors, config)
    if unknown is not None:
        _keep(tensors, unknown)
        return
    for module in _modules(tensors, config):
        settings = settings_of(config, module.name)
        if not settings.is_quantized:
            refuse(
                "the config says that this module is not quantized, but it has codes; correct one of them",
                module.codes,
            )
        check_words(module)
        name = layout.name or _by_shape(module)
        if name == GPTQ_WORDS:
            add_gptq(tensors, module, settings, layout, config)
        elif settings.bits not in (None, AWQ_BITS):
            why = f"codes of AWQ with {counted(settings.bits, 'bit')}, which can't be decoded"
            tensors.keep([module.codes.name, *module.parts], why)
        elif name == AWQ_GEMV:
            add_gemv(tensors, module, settings, config)
        else:
            add_gemm(tensors, module, settings, config)


def _scaled_activations(tensors: Tensors, config: ModelConfig) -> str | None:
    """The format's name if AWQ has scaled activations, else None. AutoAWQ puts a module with a vector of scales after
    the activation of some models, which no full-precision model has; without it, the decoded weights would be
    wrong."""
    if config.method != AWQ_METHOD:
        return None
    for scales in tensors.by_name.values():
        base = scales.name.removesuffix(SCALES)
        if base != scales.name and len(scales.shape) == 1 and base + CODES not in tensors.by_name:
            return f"AWQ with scaled activations ({scales.name})"
    return None


def _keep(tensors: Tensors, what: str) -> None:
    """Keeps codes, and what belongs to them."""
    ends = (CODES, ZEROS, SCALES, GROUPS, *_MARLIN, ".workspace")
    for part in list(tensors.by_name.values()):
        for end in (CODES, SCALES, _MARLIN[0]):
            base = part.name.removesuffix(end)
            if base != part.name and (part.dtype in ("int32", "int16") or end == SCALES):
                tensors.keep([base + other for other in ends], f"codes of {what}, which can't be decoded")


def _modules(tensors: Tensors, config: ModelConfig) -> Iterator[WordParts]:
    """The modules that have codes. If the config does not say that they are GPTQ's or AWQ's, all of their parts must
    be there."""
    found = tensors.by_name
    for part in list(found.values()):
        for suffix in (CODES, ZEROS, SCALES):
            base = part.name.removesuffix(suffix)
            if base == part.name:
                continue
            parts = [found.get(base + end) for end in (CODES, ZEROS, SCALES)]
            missing = [
                base + end
                for end, tensor in zip((CODES, ZEROS, SCALES), parts, strict=True)
                if tensor is None
            ]
            if missing and config.method in WORD_METHODS:
                refuse(f"it is a part of GPTQ's or AWQ's codes, but {missing[0]} is missing; {AGAIN}", part)
            codes, zeros, scales = parts
            if suffix == CODES and codes is not None and zeros is not None and scales is not None:
                yield WordParts(base, codes, zeros, scales, found.get(base + GROUPS))


def _by_shape(module: WordParts) -> str:
    return GPTQ_WORDS if module.scales.shape[1] == module.codes.shape[1] else AWQ_GEMM
