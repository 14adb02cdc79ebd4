"""Chooses which of GGML's blocks a stored layer becomes, or says why none."""

from __future__ import annotations

from dataclasses import dataclass, replace

from arrowquant_dist.config import BITS, QuantSpec
from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.errors import counted
from arrowquant_dist.export.advice import KEEP, Advice
from arrowquant_dist.export.gguf.architecture import TensorPlace
from arrowquant_dist.export.gguf.blocks import BLOCKS
from arrowquant_dist.export.gguf.packers import CodeBlocks, FloatValues
from arrowquant_dist.export.gguf.scales import Fp16
from arrowquant_dist.export.gguf.stored import StoredCodes, StoredScheme
from arrowquant_dist.export.tensors import AS_THE_SOURCE

_SMALLEST = 32  # values in the smallest block
_OTHER_CODES = Advice(
    "quantize to symmetric int8 or int4, by row or in groups of a multiple of 32 (configs/gguf-q4.yaml)",
    "quant_type: int8 and symmetric: true",
)
# float64 values are checked when they are packed; all float8 values are also fp16 values.
_KEPT = {"float32": "F32", "float64": "F32", "bfloat16": "BF16", "float16": "F16"} | dict.fromkeys(
    ("float8_e4m3fn", "float8_e5m2"), "F16"
)


@dataclass(frozen=True, slots=True)
class Choice:
    """What a layer becomes. packer: makes its tensor. spec: how it is quantized anew before that, or None."""

    packer: CodeBlocks | FloatValues
    spec: QuantSpec | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a layer has no blocks. reason: what GGUF lacks, such as `int3`. advice: None if only other weights help."""

    reason: str
    advice: Advice | None


def blocks_as_stored(layer: StoredLayer, codes: StoredCodes, place: TensorPlace) -> Choice | Refusal:
    """Returns what a layer becomes if it is written as it is stored."""
    if not codes.are_codes:
        return _kept(layer, place)
    if place.stored == "F32":
        return Choice(FloatValues("F32", place.head_rows, layer.name))  # codes decode to float32
    if len(codes.schemes) > 1:
        return Refusal("codes of several kinds in one layer", KEEP)
    (scheme,) = codes.schemes
    what = f"{scheme.quant_type}{'' if scheme.is_symmetric else ' with zero points'}"
    dtype = _blocks_of(scheme)
    if layer.columns % _SMALLEST:
        return Refusal(
            f"{what} in rows of {counted(layer.columns, 'value')}, not a multiple of {_SMALLEST}", KEEP
        )
    if dtype is None:
        return Refusal(what, _OTHER_CODES)
    values = BLOCKS[dtype].values
    if layer.columns % values:
        return Refusal(
            f"{what} in rows of {counted(layer.columns, 'value')}, not a multiple of {values}", _OTHER_CODES
        )
    if scheme.group_size % values:
        return Refusal(f"{what} in groups of {scheme.group_size}, not a multiple of {values}", _OTHER_CODES)
    if codes.fp16 is not Fp16.HOLDS:
        return Refusal("scales that fp16, in which GGUF stores them, cannot represent", KEEP)
    return Choice(CodeBlocks(dtype, layer.name, place.head_rows))


def blocks_anew(layer: StoredLayer, codes: StoredCodes, place: TensorPlace, *, has_source: bool) -> Choice:
    """Returns what a layer becomes whose codes no block can hold. has_source: values are taken from the original
    weights.

    Otherwise nothing is rounded twice if that can be avoided: codes of 2 and 3 bits keep their values in blocks of four
    bits. Layers that fit no block are decoded, and so are those whose values fp16 scales would change.
    """
    if layer.columns % _SMALLEST or codes.fp16 is not Fp16.HOLDS:
        return Choice(FloatValues("F32", place.head_rows, layer.name), AS_THE_SOURCE if has_source else None)
    scheme = min(codes.schemes, key=lambda found: BITS.get(found.quant_type, 16))
    bits = BITS[scheme.quant_type]
    is_symmetric = bits == 8 or scheme.is_symmetric
    dtype = "Q8_0" if bits == 8 else "Q4_0" if is_symmetric else "Q4_1"
    blocks = CodeBlocks(dtype, layer.name, place.head_rows, widened=bits < 4)
    keeps_codes = is_symmetric == scheme.is_symmetric and not scheme.group_size % _SMALLEST
    if keeps_codes and len(codes.schemes) == 1 and not has_source:
        return Choice(blocks)
    spec = QuantSpec(
        "int8" if bits == 8 else "int4",
        per_channel=False,
        group_size=_SMALLEST,
        symmetric=is_symmetric,
        method="rtn" if bits == 8 else "mse",
        scale_dtype="float16",
    )
    return Choice(replace(blocks, widened=False), spec)


def _kept(layer: StoredLayer, place: TensorPlace) -> Choice | Refusal:
    """Returns what a layer without codes becomes: each dtype itself, or one that holds all its values."""
    if layer.dtype not in _KEPT:
        return Refusal(f"values of {layer.dtype}", None)
    if place.stored == "F32" or layer.quant_type == "mixed":
        return Choice(FloatValues("F32", place.head_rows, layer.name))
    dtype = "F16" if layer.quant_type == "fp16" else _KEPT[layer.dtype]
    return Choice(FloatValues(dtype, place.head_rows, layer.name))


def _blocks_of(scheme: StoredScheme) -> str | None:
    if scheme.quant_type == "int4":
        return "Q4_0" if scheme.is_symmetric else "Q4_1"
    return {"int8": "Q8_0", "int2": "TQ2_0"}.get(scheme.quant_type) if scheme.is_symmetric else None
