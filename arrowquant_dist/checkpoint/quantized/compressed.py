"""compressed-tensors' integers: X_packed (pack-quantized) or int8 X (int-quantized), X_scale, and X_zero_point, X_g_idx
where there are any.

transformers and vLLM multiply in the scales' dtype; here it is float32, rounded once to the model's dtype: the same
wherever that is the scales' too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from arrowquant_dist.checkpoint.quantized.encoding import PACKED_BITS, Grid, Place, Scaled, row_nbytes
from arrowquant_dist.checkpoint.quantized.scales import check_scales, find_block
from arrowquant_dist.checkpoint.quantized.schemes import Scheme, Schemes
from arrowquant_dist.checkpoint.quantized.tensors import Tensors, refuse
from arrowquant_dist.checkpoint.table import Layer
from arrowquant_dist.errors import InvalidCheckpoint

ReadValues = Callable[[Sequence[Layer]], list[np.ndarray]]  # small raw layers → uint8 [nbytes] each

_PACKED, _SCALE, _SHAPE, _ZERO_POINT, _GROUPS = "_packed", "_scale", "_shape", "_zero_point", "_g_idx"
_WORD_BITS = 32
_MAX_DIMS = 3
_BITS = {bits: codes for codes, bits in PACKED_BITS.items()}


def add_integers(tensors: Tensors, schemes: Schemes, read_values: ReadValues) -> None:
    """Adds the layers of compressed-tensors' integer codes. read_values: for the shapes of packed ones, which only the
    values of X_shape tell.

    Raises InvalidCheckpoint for codes whose scales, shape or scheme is missing, or that do not fit each other.
    """
    if not schemes.all:
        return
    packed = [t for t in tensors.by_name.values() if t.name.endswith(_PACKED) and t.dtype == "int32"]
    shapes = _read_shapes(packed, tensors, read_values)
    for codes, shape in zip(packed, shapes, strict=True):
        base = codes.name.removesuffix(_PACKED)
        _add(tensors, codes, base, shape, schemes, [base + _SHAPE])
    for codes in tensors.by_name.values():
        has_scales = codes.dtype == "int8" and codes.name + _SCALE in tensors.by_name
        if has_scales and codes.shape and codes.nbytes and codes.name not in tensors.layers:
            _add(tensors, codes, codes.name, codes.shape, schemes, [])


def _read_shapes(packed: Sequence[Layer], tensors: Tensors, read_values: ReadValues) -> list[tuple[int, ...]]:
    """What the X_shape of each says."""
    places = []
    for codes in packed:
        shape = _companion(codes, codes.name.removesuffix(_PACKED) + _SHAPE, tensors)
        if shape.dtype not in ("int64", "int32") or len(shape.shape) != 1 or shape.shape[0] > _MAX_DIMS:
            refuse(
                f"{list(shape.shape)} of {shape.dtype} is no shape of a weight; download the file again",
                shape,
            )
        tensors.place(shape)
        places.append(shape)
    found = read_values(places)
    return [
        tuple(values.view("<i8" if place.dtype == "int64" else "<i4").tolist())
        for place, values in zip(places, found, strict=True)
    ]


def _add(
    tensors: Tensors, codes: Layer, base: str, shape: tuple[int, ...], schemes: Schemes, parts: list[str]
) -> None:
    scales = _companion(codes, base + _SCALE, tensors)
    check_scales(scales)
    reasons = []
    for scheme in schemes.of(base.rpartition(".")[0]):
        try:
            scaled, used = _scaled(tensors, codes, base, shape, scales, scheme)
        except InvalidCheckpoint as error:
            reasons.append(error)
            continue
        tensors.add(codes, base, shape, scaled, [*parts, scales.name, *used])
        return
    raise reasons[0]


def _scaled(
    tensors: Tensors, codes: Layer, base: str, shape: tuple[int, ...], scales: Layer, scheme: Scheme
) -> tuple[Scaled, list[str]]:
    """As the scheme has it, with the names of what else is used. InvalidCheckpoint where the tensors do not fit it."""
    kind = "int8" if codes.dtype == "int8" else _BITS.get(scheme.bits)
    if kind is None:
        refuse(
            f"packed integers of {scheme.bits} bits are not supported, only 2, 4 and 8; decompress the model",
            codes,
        )
    words = (
        (*shape[:-1], row_nbytes(kind, shape[-1]) // _word_nbytes(codes)) if shape and min(shape) > 0 else ()
    )
    if codes.shape != words:
        message = (
            f"codes of shape {list(codes.shape)} are no {scheme.bits}-bit weights of shape {list(shape)}"
        )
        refuse(f"{message}; download the file again", codes)
    used = []
    block = find_block(shape, scales, scheme.blocks)
    scaled = Scaled(kind, block, tensors.place(scales))
    if not scheme.symmetric:
        zero_points = _companion(codes, base + _ZERO_POINT, tensors)
        used.append(zero_points.name)
        place = _zero_points(tensors, zero_points, Grid.of(shape, scaled), scales, kind)
        scaled = Scaled(kind, block, scaled.scales, place)
    groups = tensors.by_name.get(base + _GROUPS)
    if groups is not None:
        if groups.dtype != "int32" or groups.shape != shape[-1:] or len(shape) != 2:
            refuse(
                f"{list(groups.shape)} of {groups.dtype} are not the groups of the columns of {list(shape)}",
                groups,
            )
        used.append(groups.name)
        scaled = Scaled(kind, block, scaled.scales, scaled.zero_points, tensors.place(groups))
    return scaled, used


def _word_nbytes(codes: Layer) -> int:
    return 1 if codes.dtype == "int8" else _WORD_BITS // 8


def _zero_points(tensors: Tensors, zero_points: Layer, grid: Grid, scales: Layer, kind: str) -> Place:
    """int8 in the scales' shape, or packed down the rows: int32 […, words, groups]."""
    bits = PACKED_BITS.get(kind, 8)
    words = (*scales.shape[:-2], -(-grid.scale_rows * bits // _WORD_BITS), grid.scale_columns)
    one_to_one = zero_points.dtype == "int8" and math.prod(zero_points.shape) == math.prod(scales.shape)
    packed = zero_points.dtype == "int32" and kind in PACKED_BITS and zero_points.shape == words
    if not (one_to_one or packed):
        message = f"zero points {list(zero_points.shape)} of {zero_points.dtype} do not fit scales {list(scales.shape)}"
        refuse(f"{message}; download the file again", zero_points)
    return tensors.place(zero_points)


def _companion(codes: Layer, name: str, tensors: Tensors) -> Layer:
    found: Mapping[str, Layer] = tensors.by_name
    if name not in found:
        refuse(
            f"these are codes of compressed-tensors, and {name} is not there; download the checkpoint again",
            codes,
        )
    return found[name]
