"""Codes that are not decoded stay byte for byte, as does everything that belongs to them: quantizing their scales
would silently change the weights.

Known formats are recognized by the names of their tensors (formats.py) before anything is decoded. What merely looks
like codes (integers beside floats with names of scales) is kept after everything else has been assigned.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from arrowquant_dist.checkpoint.quantized.formats import DECODED_METHODS, FORMATS, METHOD_LABELS, Format
from arrowquant_dist.checkpoint.quantized.model_config import ModelConfig
from arrowquant_dist.checkpoint.quantized.names import WEIGHT, module_of
from arrowquant_dist.checkpoint.quantized.notes import CODES
from arrowquant_dist.checkpoint.quantized.tensors import Tensors
from arrowquant_dist.checkpoint.table import Layer
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.errors import InvalidCheckpoint, listed

CODE_DTYPES = frozenset(("uint8", "int8", "int16", "uint16", "int32", "uint32", "uint64", "float4_e2m1fn_x2"))
_BYTES = ("uint8", "int8")
_WIDE = ("float64", "float32", "float16", "bfloat16")  # dtypes that are not codes
_PRE_SCALE = "_pre_quant_scale"
# Names of integers that are not codes, in modules that may have a parameter called a scale.
_NO_CODES = re.compile(
    r"(?:index|indices|ids?|idx|masks?|positions?|steps?|lengths?|offsets?|shape|bias|types?)$"
)
_SCALES = re.compile(
    r"scal(?:e|ing)|zero|absmax|amax|codebook|centroid|lookup_table|lut$|quant_map|quant_state|qbias"
)
_SHORT_SCALES = ("s", "z", "SU", "SV", "SCB", "biases")
_WHOLE = (
    "weight",
    "B",
    "qweight",
    "W",
    "packed_weight",
    "weight_packed",
    "quant_weight",
    "weight_quant",
    "codes",
)
_ENDINGS = re.compile(r"(?:_packed|_qweight|_weight|_codes|_blocks|_qdata|_quantized|_data|_int\d*)$")
_CODE_NAMES = (
    ".qweight",
    "_packed",
    ".weight",
)  # codes even without scales beside them, since no layer's weights are integers
_STATE = ".quant_state."  # bitsandbytes': between the name of the codes and that of the format
_SIGNS = {  # formats recognized by the names beside the codes, if config.json does not tell
    "GPTQ or AWQ": ("qweight", "qzeros"),
    "Marlin": ("B", "s"),
    "MLX": ("weight", "scales", "biases"),
    "bitsandbytes": ("weight", "SCB"),
}


def why_kept(name: str) -> str:
    """The reason that a plan shows for each layer. name: of the format."""
    return f"{CODES} {name}, which can't be decoded"


def keep_known_formats(tensors: Tensors) -> None:
    """Keeps the modules of formats that are known but not decoded."""
    _keep_parameters(tensors)
    possible = _possible(tensors)
    if not possible:
        return
    modules = _by_module(tensors.by_name)
    for module, names in modules.items():
        own = {name[len(module) + 1 :] if module else name for name in names}
        found = next((known for known in possible if _is_of(known, module, own, modules, tensors)), None)
        if found is not None:
            below = (name for child in found.below for name in modules.get(f"{module}.{child}", ()))
            tensors.keep([*names, *below], why_kept(found.name))
        for name in names:
            if name.endswith(_PRE_SCALE):  # of fused experts
                stem = name.removesuffix(_PRE_SCALE)
                tensors.keep((n for n in names if n.startswith(stem)), why_kept("ModelOpt (AWQ)"))


def _keep_parameters(tensors: Tensors) -> None:
    """Keeps bitsandbytes' parameters that are no module's weight (fused experts): X with X.absmax, X.quant_state…"""
    stems = {name.partition(_STATE)[0] for name in tensors.by_name if _STATE in name}
    stems = {stem for stem in stems if stem in tensors.by_name and not stem.endswith(WEIGHT)}
    if stems:
        parts = (name for name in tensors.by_name if stems & {name, *_owners(name)})
        tensors.keep(parts, why_kept("bitsandbytes (4 bits)"))


def _owners(name: str) -> tuple[str, str]:
    """The possible owners of a part such as X.quant_state.bitsandbytes__nf4 or X.absmax."""
    return name.partition(_STATE)[0], name.rpartition(".")[0]


def _possible(tensors: Tensors) -> list[Format]:
    """The formats whose names occur at all; most models contain none of them."""
    last = {_last(name) for name in tensors.by_name}
    if any(name.endswith(_PRE_SCALE) for name in last):
        return list(FORMATS)

    def is_there(name: str) -> bool:
        return any(name in other for other in tensors.by_name) if name.endswith(".") else _last(name) in last

    return [known for known in FORMATS if all(is_there(name) for name in reversed(known.has))]


def keep_unknown(tensors: Tensors, config: ModelConfig) -> None:
    """Keeps integers that look like codes, and what looks like scales beside them."""
    free = [name for name in tensors.by_name if tensors.is_free(name)]
    for names in _by_module(free).values():
        layers = [tensors.by_name[name] for name in names]
        codes = [layer for layer in layers if _look_like_codes(layer)]
        is_named = any(layer.name.endswith(_CODE_NAMES) for layer in codes)
        if codes and (is_named or any(_looks_like_scales(layer) for layer in layers)):
            belong = [layer.name for layer in layers if _belongs(layer, codes)]
            tensors.keep(belong, why_kept(_label(config, names)))


def refuse_mixtures(tensors: Tensors, config: ModelConfig) -> None:
    """Raises InvalidCheckpoint if codes of config.json's method were partly decoded and partly kept: the dataset
    would be wrong both with its `quantization_config` and without it."""
    if not tensors.layers or not config.method or config.method in DECODED_METHODS:
        return
    label = _of_method(config)
    names = [name for name, why in tensors.kept.items() if why.startswith(f"{CODES} {label}")]
    if names:
        decoded = [layer.name for layer in tensors.layers.values()]
        message = (
            f"{listed(names)} can't be decoded ({tensors.kept[names[0]]}), but {listed(decoded)} can: no config.json "
            "describes a mixture of both; use the model that it was made from"
        )
        raise InvalidCheckpoint(message, uri=config.uri)


def _by_module(names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(module_of(name), []).append(name)
    return found


def _is_of(
    known: Format, module: str, own: set[str], modules: dict[str, list[str]], tensors: Tensors
) -> bool:
    if known.has[0] not in own:
        return False
    if not all(name in own or _begins(name, own) for name in known.has[1:]):
        return False
    codes = tensors.by_name[f"{module}.{known.has[0]}" if module else known.has[0]]
    if codes.dtype in _WIDE and not known.may_be_floats:
        return False
    return not known.below or any(f"{module}.{child}" in modules for child in known.below)


def _begins(start: str, names: set[str]) -> bool:
    return start.endswith(".") and any(name.startswith(start) for name in names)


def _look_like_codes(layer: Layer) -> bool:
    if layer.dtype not in CODE_DTYPES or _NO_CODES.search(_last(layer.name)):
        return False
    return len(layer.shape) > 1 or (layer.dtype in _BYTES and layer.num_params > 1)


def _looks_like_scales(layer: Layer) -> bool:
    """Whether the tensor has the name of a scale, and is a float or bytes that are powers of two."""
    last = _last(layer.name)
    is_called_so = _SCALES.search(last) is not None or last in _SHORT_SCALES
    return is_called_so and (DTYPES[layer.dtype].is_float or layer.dtype in ("uint8", "float8_e8m0fnu"))


def _belongs(layer: Layer, codes: Sequence[Layer]) -> bool:
    """Whether a tensor in the module of the codes is codes, scales, or anything else that belongs to a module with
    these as its weight."""
    if layer in codes or _looks_like_scales(layer):
        return True
    last = _last(layer.name)
    for found in codes:
        name = _last(found.name)
        if (name in _WHOLE and "." in found.name) or last.startswith(f"{_ENDINGS.sub('', name)}_"):
            return True
    return False


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _label(config: ModelConfig, names: Sequence[str]) -> str:
    """The format's usual name."""
    if config.method and config.method not in DECODED_METHODS:
        return _of_method(config)
    own = {_last(name) for name in names}
    return next((label for label, signs in _SIGNS.items() if own.issuperset(signs)), "an unknown format")


def _of_method(config: ModelConfig) -> str:
    return METHOD_LABELS.get(config.method, f"the unknown method {config.method!r}")
