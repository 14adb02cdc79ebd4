"""GPTQ's and AWQ's integers: X.qweight, X.qzeros, X.scales, and X.g_idx where groups are not runs of inputs.

The same names hold several layouts. The config says which by `quant_method`, `checkpoint_format` (`format`), `version`
or `packing_format`; where there is none, shapes tell GPTQ's from AWQ's. Layouts that can't be decoded stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from arrowquant_dist.checkpoint.quantized.model_config import ModelConfig
from arrowquant_dist.checkpoint.quantized.module_settings import WHOLE_ROW, ModuleSettings, settings_of
from arrowquant_dist.checkpoint.quantized.tensors import Tensors, refuse
from arrowquant_dist.checkpoint.table import Layer
from arrowquant_dist.encodings.awq import Awq
from arrowquant_dist.encodings.gptq import LESS_ONE, PLAIN, WORDS_LESS_ONE, Gptq
from arrowquant_dist.encodings.packed import words_of
from arrowquant_dist.encodings.place import Place

_GPTQ, _AWQ = "gptq", "awq"
AUTO_ROUND = ("auto-round", "autoround", "auto_round", "intel/auto-round")
WORD_METHODS = (_GPTQ, _AWQ, *AUTO_ROUND)
_CODES, _ZEROS, _SCALES, _GROUPS = ".qweight", ".qzeros", ".scales", ".g_idx"
_MARLIN = (".B", ".s")  # what AutoGPTQ calls codes and scales once they are packed for Marlin
_GPTQ_BITS = (2, 3, 4, 8)
_AUTO_ROUND_BITS = (2, 3, 4, 5, 6, 7, 8)  # GPTQModel has 5 to 7 bits in another order
_AWQ_BITS, _AWQ_FIELDS = 4, 8  # of a code; codes of a word
_FLOATS = ("float16", "bfloat16", "float32")
_AGAIN = "download the checkpoint again"


@dataclass(frozen=True, slots=True)
class _Module:
    """The stored tensors of one: X is its name."""

    name: str
    codes: Layer
    zeros: Layer
    scales: Layer
    groups: Layer | None

    @property
    def parts(self) -> list[str]:
        return [part.name for part in (self.zeros, self.scales, self.groups) if part is not None]


def add_words(tensors: Tensors, config: ModelConfig) -> None:
    """Adds the layers of GPTQ's and AWQ's codes, and keeps those of layouts that can't be decoded.

    Raises InvalidCheckpoint for codes whose parts are missing or do not fit each other or the config.
    """
    if config.method not in (*WORD_METHODS, ""):
        return
    layout = _Layout.of(config)
    if layout.unknown is not None:
        _keep(tensors, layout.unknown)
        return
    for module in _modules(tensors, config):
        settings = settings_of(config, module.name)
        if not settings.is_quantized:
            refuse("the config says that this module is not quantized; correct one of them", module.codes)
        _check_parts(module)
        if (layout.method or _by_shape(module)) == _GPTQ:
            _add_gptq(tensors, module, settings, layout, config)
        elif settings.bits not in (None, _AWQ_BITS):
            why = f"codes of AWQ with {settings.bits} bits, which can't be decoded"
            tensors.keep([module.codes.name, *module.parts], why)
        else:
            _add_awq(tensors, module, settings)


@dataclass(frozen=True, slots=True)
class _Layout:
    """method: GPTQ or AWQ, "" where shapes have to tell. stored_zeros: as of `Gptq`. unknown: what can't be decoded."""

    method: str = ""
    stored_zeros: str = LESS_ONE
    bits: tuple[int, ...] = _GPTQ_BITS
    unknown: str | None = None

    @classmethod
    def of(cls, config: ModelConfig) -> _Layout:
        given = config.quantization
        if config.method in AUTO_ROUND:
            return _auto_round(str(given.get("packing_format", "auto_round:auto_gptq")))
        if config.method == _AWQ:
            version = _first(given, ("version", "format", "checkpoint_format"), "gemm")
            return cls(_AWQ) if version == "gemm" else cls(unknown=f"AWQ's layout {version!r}")
        if given.get("is_marlin_format") is True:
            return cls(unknown="GPTQ's layout 'marlin'")
        form = _first(given, ("checkpoint_format", "format"), _GPTQ)
        if form == "gptq_v2":
            return cls(config.method, PLAIN)
        if form == _GPTQ:
            return cls(config.method, WORDS_LESS_ONE if _is_gptqmodels(given) else LESS_ONE)
        return cls(unknown=f"GPTQ's layout {form!r}")


def _auto_round(packing: str) -> _Layout:
    bits = _AUTO_ROUND_BITS
    if packing in ("auto_round:auto_gptq", "auto_round:gptq", "auto"):
        return _Layout(_GPTQ, LESS_ONE, bits)
    if packing in ("auto_round:auto_awq", "auto_round:awq"):
        return _Layout(_AWQ)
    if packing in ("auto_round", "auto_round:gptqmodel", "auto_round:exllamav2", "auto_round:tritonv2"):
        return _Layout(_GPTQ, PLAIN, bits)
    return _Layout(unknown=f"auto-round's layout {packing!r}")


def _first(given: Any, keys: tuple[str, ...], default: str) -> str:
    return next((str(given[key]).lower() for key in keys if given.get(key) is not None), default)


def _is_gptqmodels(given: Any) -> bool:
    """Whether GPTQModel wrote it, which takes the ones off whole words."""
    meta = given.get("meta")
    quantizers = meta.get("quantizer") if isinstance(meta, dict) else None
    names = quantizers if isinstance(quantizers, list) else [quantizers]
    return any(str(name).lower().startswith("gptqmodel") for name in names)


def _keep(tensors: Tensors, what: str) -> None:
    """Codes, and what belongs to them."""
    for suffix in (_CODES, _MARLIN[0]):
        for codes in list(tensors.by_name.values()):
            if codes.name.endswith(suffix) and codes.dtype in ("int32", "int16"):
                base = codes.name.removesuffix(suffix)
                ends = (_CODES, _ZEROS, _SCALES, _GROUPS, *_MARLIN, ".workspace")
                tensors.keep([base + end for end in ends], f"codes of {what}, which can't be decoded")


def _modules(tensors: Tensors, config: ModelConfig) -> Iterator[_Module]:
    """Those that have codes. Where nothing says that they are GPTQ's or AWQ's, all of their parts have to."""
    found = tensors.by_name
    for part in list(found.values()):
        for suffix in (_CODES, _ZEROS, _SCALES):
            base = part.name.removesuffix(suffix)
            if base == part.name:
                continue
            parts = [found.get(base + end) for end in (_CODES, _ZEROS, _SCALES)]
            missing = [
                base + end
                for end, tensor in zip((_CODES, _ZEROS, _SCALES), parts, strict=True)
                if tensor is None
            ]
            if missing and config.method in WORD_METHODS:
                refuse(
                    f"it is a part of GPTQ's or AWQ's codes, and {missing[0]} is not there; {_AGAIN}", part
                )
            codes, zeros, scales = parts
            if suffix == _CODES and codes is not None and zeros is not None and scales is not None:
                yield _Module(base, codes, zeros, scales, found.get(base + _GROUPS))


def _check_parts(module: _Module) -> None:
    for part in (module.codes, module.zeros):
        if part.dtype != "int32" or len(part.shape) != 2 or not part.nbytes:
            refuse(f"{list(part.shape)} of {part.dtype} are no int32 words of a matrix; {_AGAIN}", part)
    if module.scales.dtype not in _FLOATS or len(module.scales.shape) != 2 or not module.scales.nbytes:
        shape = list(module.scales.shape)
        refuse(f"{shape} of {module.scales.dtype} are no scales of a matrix; {_AGAIN}", module.scales)


def _by_shape(module: _Module) -> str:
    return _GPTQ if module.scales.shape[1] == module.codes.shape[1] else _AWQ


def _add_gptq(
    tensors: Tensors, module: _Module, settings: ModuleSettings, layout: _Layout, config: ModelConfig
) -> None:
    rows, outputs = module.codes.shape
    if module.groups is None and config.quantization.get("desc_act") is True:
        refuse(f"its config says desc_act, and {module.name}{_GROUPS} is not there; {_AGAIN}", module.codes)
    bits = _bits(module, settings, layout)
    inputs = rows * 32 // bits if module.groups is None else module.groups.shape[0]
    group = _group(module, settings, inputs)
    _check_shape(module.zeros, (module.scales.shape[0], words_of(outputs, bits)), module)
    _check_shape(module.scales, (module.scales.shape[0], outputs), module)
    stored = LESS_ONE if layout.stored_zeros == WORDS_LESS_ONE and 32 % bits else layout.stored_zeros
    encoding = Gptq(bits, group, *_places(tensors, module), stored, _g_idx(tensors, module))
    tensors.place(module.codes)
    tensors.add(module.codes, f"{module.name}.weight", (outputs, inputs), encoding, module.parts)


def _bits(module: _Module, settings: ModuleSettings, layout: _Layout) -> int:
    """As the config says, or else as the shapes do. InvalidCheckpoint where they disagree, or neither says it."""
    fitting = [bits for bits in layout.bits if _fits(module, bits)]
    shapes = f"codes {list(module.codes.shape)} and zeros {list(module.zeros.shape)}"
    if module.groups is not None:
        shapes = f"{shapes} of {module.groups.shape[0]} inputs"
    if settings.bits is not None and settings.bits not in fitting:
        may_be = (
            f"they are of {fitting[0]} bits" if len(fitting) == 1 else "correct it or download them again"
        )
        refuse(f"the config says {settings.bits} bits, which {shapes} can't have; {may_be}", module.codes)
    if settings.bits is None and len(fitting) != 1:
        refuse(
            f"{shapes} do not tell how many bits they have; add `bits` to quantization_config", module.codes
        )
    return settings.bits or fitting[0]


def _fits(module: _Module, bits: int) -> bool:
    rows, outputs = module.codes.shape
    if words_of(outputs, bits) != module.zeros.shape[1]:
        return False
    if module.groups is None:
        return rows * 32 % bits == 0
    return len(module.groups.shape) == 1 and words_of(module.groups.shape[0], bits) == rows


def _g_idx(tensors: Tensors, module: _Module) -> Place | None:
    if module.groups is None:
        return None
    if module.groups.dtype != "int32":
        refuse(f"groups of {module.groups.dtype} are not supported, only int32; convert them", module.groups)
    return tensors.place(module.groups)


def _add_awq(tensors: Tensors, module: _Module, settings: ModuleSettings) -> None:
    inputs, words = module.codes.shape
    outputs = words * _AWQ_FIELDS
    group = _group(module, settings, inputs)
    _check_shape(module.zeros, (module.scales.shape[0], words), module)
    _check_shape(module.scales, (module.scales.shape[0], outputs), module)
    tensors.place(module.codes)
    tensors.add(
        module.codes,
        f"{module.name}.weight",
        (outputs, inputs),
        Awq(group, *_places(tensors, module)),
        module.parts,
    )


def _group(module: _Module, settings: ModuleSettings, inputs: int) -> int:
    """Inputs that share a scale: as the config says, or as many as make equal groups."""
    count = module.scales.shape[0]
    size = inputs if settings.group_size == WHOLE_ROW else settings.group_size
    if size is None:
        size = -(-inputs // count)
    if -(-inputs // size) != count or (
        settings.group_size is None and module.groups is None and inputs % count
    ):
        refuse(
            f"scales {list(module.scales.shape)} are not those of {inputs} inputs in groups of {size}; {_AGAIN}",
            module.scales,
        )
    return size


def _places(tensors: Tensors, module: _Module) -> tuple[Place, Place]:
    return tensors.place(module.scales), tensors.place(module.zeros)


def _check_shape(part: Layer, shape: tuple[int, int], module: _Module) -> None:
    if part.shape != shape:
        of = f"{module.codes.name} {list(module.codes.shape)}"
        refuse(f"of shape {list(part.shape)}, where {of} needs {list(shape)}; {_AGAIN}", part)
