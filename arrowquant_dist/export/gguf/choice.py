"""Which of GGML's blocks a stored layer becomes, or why none."""

from __future__ import annotations

from dataclasses import dataclass

from arrowquant_dist.config import BITS, QuantSpec
from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.export.gguf.architecture import TensorPlace
from arrowquant_dist.export.gguf.packers import BLOCK_VALUES, CodeBlocks, FloatValues

_SMALLEST = 32  # values of a block
# Wider ones are kept as they are by the format that holds them; float8's values are all fp16's.
_KEPT = {"float32": "F32", "float64": "F32", "bfloat16": "BF16", "float16": "F16"} | dict.fromkeys(
    ("float8_e4m3fn", "float8_e5m2"), "F16"
)


@dataclass(frozen=True, slots=True)
class Choice:
    """packer: what the layer becomes. spec: how it is quantized anew before, or None."""

    packer: CodeBlocks | FloatValues
    spec: QuantSpec | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """reason: what GGUF does not have, as `int3`."""

    reason: str


@dataclass(frozen=True, slots=True)
class _Scheme:
    quant_type: str
    group_size: int  # 0: of a row, or of all
    is_symmetric: bool


def blocks_as_stored(layer: StoredLayer, place: TensorPlace) -> Choice | Refusal:
    """What a layer becomes as it is stored."""
    kinds = _schemes(layer)
    if not any(kind.quant_type in BITS for kind in kinds):
        return _kept(layer, place)
    if place.stored == "F32":
        return Choice(FloatValues("F32", place.head_rows))  # float32 is what codes decode to
    if len(kinds) > 1:
        return Refusal("codes of several kinds in one layer")
    (scheme,) = kinds
    what = f"{scheme.quant_type}{'' if scheme.is_symmetric else ' with zero points'}"
    dtype = _blocks_of(scheme)
    if dtype is None:
        return Refusal(what)
    values = BLOCK_VALUES[dtype]
    if layer.columns % values:
        return Refusal(f"{what} in rows of {layer.columns} values, no multiple of {values}")
    if scheme.group_size % values:
        return Refusal(f"{what} in groups of {scheme.group_size}, no multiple of {values}")
    return Choice(CodeBlocks(dtype, layer.name, place.head_rows))


def blocks_anew(layer: StoredLayer, place: TensorPlace, *, has_source: bool) -> Choice:
    """What a layer becomes whose codes no block holds. has_source: values are taken from the original weights.

    Without them nothing is rounded twice where that can be helped: codes of 2 and 3 bits keep their values in blocks of
    four, and rows that no block fits are decoded.
    """
    if layer.columns % _SMALLEST:
        return Choice(FloatValues("F32", place.head_rows))
    kinds = _schemes(layer)
    scheme = min(kinds, key=lambda kind: BITS.get(kind.quant_type, 16))
    bits = BITS[scheme.quant_type]
    keeps_codes = bits < 4 and len(kinds) == 1 and not scheme.group_size % _SMALLEST and not has_source
    if keeps_codes:
        dtype = "Q4_0" if scheme.is_symmetric else "Q4_1"
        return Choice(CodeBlocks(dtype, layer.name, place.head_rows, widened=True, rounded=True))
    spec = QuantSpec(
        "int8" if bits == 8 else "int4",
        per_channel=False,
        group_size=_SMALLEST,
        symmetric=bits == 8 or scheme.is_symmetric,
        method="rtn" if bits == 8 else "mse",
    )
    dtype = "Q8_0" if bits == 8 else "Q4_0" if spec.symmetric else "Q4_1"
    return Choice(CodeBlocks(dtype, layer.name, place.head_rows, rounded=True), spec)


def _kept(layer: StoredLayer, place: TensorPlace) -> Choice | Refusal:
    """Values that are no codes: each dtype as itself, or as one that holds all its values."""
    if layer.dtype not in _KEPT:
        return Refusal(f"values of {layer.dtype}")
    if place.stored == "F32" or layer.quant_type == "mixed":
        return Choice(FloatValues("F32", place.head_rows))
    return Choice(FloatValues("F16" if layer.quant_type == "fp16" else _KEPT[layer.dtype], place.head_rows))


def _blocks_of(scheme: _Scheme) -> str | None:
    if scheme.quant_type == "int4":
        return "Q4_0" if scheme.is_symmetric else "Q4_1"
    return {"int8": "Q8_0", "int2": "TQ2_0"}.get(scheme.quant_type) if scheme.is_symmetric else None


def _schemes(layer: StoredLayer) -> set[_Scheme]:
    return {
        _Scheme(
            block.header.quant_type,
            block.header.group_size if block.header.quant_axis == 0 else 0,
            block.ranges is None or not block.ranges.zero_points.stored_nbytes,
        )
        for block in layer.blocks
    }
