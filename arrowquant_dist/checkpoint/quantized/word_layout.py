"""How a config says that the codes of GPTQ and AWQ are laid out; the same names are used for several layouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arrowquant_dist.checkpoint.quantized.model_config import ModelConfig
from arrowquant_dist.encodings.gptq import LESS_ONE, PLAIN, WORDS_LESS_ONE

GPTQ_WORDS, AWQ_GEMM, AWQ_GEMV = "gptq", "gemm", "gemv"  # layouts that are decoded
AWQ_METHOD = "awq"
_AUTO_ROUND = ("auto-round", "autoround", "auto_round", "intel/auto-round")
WORD_METHODS = (GPTQ_WORDS, AWQ_METHOD, *_AUTO_ROUND)
_ROTATION = ("rotation", "rotation_config")  # GPTQModel's, auto-round's
_GPTQ_BITS = (2, 3, 4, 8)
_AUTO_ROUND_BITS = (2, 3, 4, 5, 6, 7, 8)  # GPTQModel stores 5 to 7 bits in another order


@dataclass(frozen=True, slots=True)
class WordLayout:
    """The layout of a model's codes. name: of a layout that is decoded, "" if shapes have to distinguish GPTQ's from
    GEMM. stored_zeros: as in `Gptq`. bits: that GPTQ's codes may have. unknown: what it is, if it can't be
    decoded."""

    name: str = ""
    stored_zeros: str = LESS_ONE
    bits: tuple[int, ...] = _GPTQ_BITS
    unknown: str | None = None

    @classmethod
    def of(cls, config: ModelConfig) -> WordLayout:
        given = config.quantization
        if any(_meta(given).get(key) or given.get(key) for key in _ROTATION):
            return cls(unknown="weights that were rotated")
        if config.method in _AUTO_ROUND:
            return _auto_round(str(given.get("packing_format", "auto_round:auto_gptq")))
        if config.method == AWQ_METHOD:
            version = _first(given, ("version", "format", "checkpoint_format"), AWQ_GEMM)
            return (
                cls(version) if version in (AWQ_GEMM, AWQ_GEMV) else cls(unknown=f"AWQ's layout {version!r}")
            )
        if given.get("is_marlin_format") is True:
            return cls(unknown="GPTQ's layout 'marlin'")
        form = _first(given, ("checkpoint_format", "format"), GPTQ_WORDS)
        if form == "gptq_v2":
            return cls(config.method, PLAIN)
        if form == GPTQ_WORDS:
            return cls(config.method, WORDS_LESS_ONE if _is_gptqmodels(given) else LESS_ONE)
        return cls(unknown=f"GPTQ's layout {form!r}")


def _auto_round(packing: str) -> WordLayout:
    bits = _AUTO_ROUND_BITS
    if packing in ("auto_round:auto_gptq", "auto_round:gptq", "auto"):
        return WordLayout(GPTQ_WORDS, LESS_ONE, bits)
    if packing in ("auto_round:auto_awq", "auto_round:awq"):
        return WordLayout(AWQ_GEMM)
    if packing in ("auto_round", "auto_round:gptqmodel", "auto_round:exllamav2", "auto_round:tritonv2"):
        return WordLayout(GPTQ_WORDS, PLAIN, bits)
    return WordLayout(unknown=f"auto-round's layout {packing!r}")


def _first(given: Any, keys: tuple[str, ...], default: str) -> str:
    return next((str(given[key]).lower() for key in keys if given.get(key) is not None), default)


def _meta(given: Any) -> Mapping[str, Any]:
    meta = given.get("meta")
    return meta if isinstance(meta, dict) else {}


def _is_gptqmodels(given: Any) -> bool:
    """Whether GPTQModel wrote it, which subtracts the ones from whole words."""
    quantizers = _meta(given).get("quantizer")
    names = quantizers if isinstance(quantizers, list) else [quantizers]
    return any(str(name).lower().startswith("gptqmodel") for name in names)
