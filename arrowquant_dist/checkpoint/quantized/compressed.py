"""Integer codes of compressed-tensors: X_packed (pack-quantized) or int8 X (int-quantized), X_scale, and X_zero_point
and X_g_idx where needed.

transformers and vLLM multiply in the scales' dtype. Here it is done in float32 and rounded once to the model's dtype,
which gives the same if the scales have that dtype too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from arrowquant_dist.checkpoint.quantized.scales import check_scales, find_block
from arrowquant_dist.checkpoint.quantized.schemes import Scheme, Schemes
from arrowquant_dist.checkpoint.quantized.tensors import Tensors, refuse
from arrowquant_dist.checkpoint.table import Layer
from arrowquant_dist.encodings.encoding import Encoding
from arrowquant_dist.encodings.int8 import Int8
from arrowquant_dist.encodings.packed import PACKED_BITS, PackedInts, words_of
from arrowquant_dist.encodings.place import Place
from arrowquant_dist.encodings.rows import Block, matrix_of
from arrowquant_dist.encodings.zero_points import word_rows
from arrowquant_dist.errors import InvalidCheckpoint, counted

ReadValues = Callable[[Sequence[Layer]], list[np.ndarray]]  # small raw layers → uint8 [nbytes] each

_PACKED, _SCALE, _SHAPE, _ZERO_POINT, _GROUPS = "_packed", "_scale", "_shape", "_zero_point", "_g_idx"
_MAX_DIMS = 3


def add_integers(tensors: Tensors, schemes: Schemes, read_values: ReadValues) -> None:
    """Adds the layers of compressed-tensors' integer codes. read_values: reads the shapes of packed codes, which only
    the values of X_shape tell.

    Raises InvalidCheckpoint for codes whose scales, shape or scheme is missing, or that do not fit each other.
    """
    if not schemes.all:
        return
    free = [tensor for tensor in tensors.by_name.values() if tensors.is_free(tensor.name)]
    packed = [tensor for tensor in free if tensor.name.endswith(_PACKED) and tensor.dtype == "int32"]
    shapes = _read_shapes(packed, tensors, read_values)
    for codes, shape in zip(packed, shapes, strict=True):
        base = codes.name.removesuffix(_PACKED)
        _add(tensors, codes, base, shape, schemes, [base + _SHAPE])
    for codes in free:
        has_scales = codes.dtype == "int8" and codes.name + _SCALE in tensors.by_name
        if has_scales and codes.shape and codes.nbytes and tensors.is_free(codes.name):
            _add(tensors, codes, codes.name, codes.shape, schemes, [])


def _read_shapes(packed: Sequence[Layer], tensors: Tensors, read_values: ReadValues) -> list[tuple[int, ...]]:
    """The shape that the X_shape of each tensor gives."""
    places = []
    for codes in packed:
        shape = _companion(codes, codes.name.removesuffix(_PACKED) + _SHAPE, tensors)
        if shape.dtype not in ("int64", "int32") or len(shape.shape) != 1 or shape.shape[0] > _MAX_DIMS:
            refuse(
                f"{list(shape.shape)} of {shape.dtype} can't hold the shape of a weight; download the file again",
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
            encoding, used = _encoding(tensors, codes, base, shape, scales, scheme)
        except InvalidCheckpoint as error:
            reasons.append(error)
            continue
        tensors.add(codes, base, shape, encoding, [*parts, scales.name, *used])
        return
    raise reasons[0]


def _encoding(
    tensors: Tensors, codes: Layer, base: str, shape: tuple[int, ...], scales: Layer, scheme: Scheme
) -> tuple[Encoding, list[str]]:
    """The encoding by this scheme, and the names of the other tensors that it uses. Raises InvalidCheckpoint if the
    tensors do not fit the scheme."""
    bits = None if codes.dtype == "int8" else scheme.bits
    if bits is not None:
        _check_codes(codes, shape, bits)
    block = find_block(shape, scales, scheme.blocks)
    place, used = tensors.place(scales), []
    zero_points = groups = None
    if not scheme.symmetric:
        found = _companion(codes, base + _ZERO_POINT, tensors)
        zero_points = _zero_points(tensors, found, _scale_grid(shape, block), scales, bits)
        used.append(found.name)
    if base + _GROUPS in tensors.by_name:
        found = tensors.by_name[base + _GROUPS]
        groups = _groups(tensors, found, shape)
        used.append(found.name)
    if bits is None:
        return Int8(block, place, zero_points, groups), used
    return PackedInts(bits, block, place, zero_points, groups), used


def _check_codes(codes: Layer, shape: tuple[int, ...], bits: int) -> None:
    """Checks the codes of packed integers."""
    if bits not in PACKED_BITS:
        refuse(
            f"packed integers of {counted(bits, 'bit')} are not supported, only 2, 4 and 8; decompress the model",
            codes,
        )
    words = (*shape[:-1], words_of(shape[-1], bits)) if shape and min(shape) > 0 else ()
    if codes.shape != words:
        message = f"codes of shape {list(codes.shape)} do not fit {bits}-bit weights of shape {list(shape)}"
        refuse(f"{message}; download the file again", codes)


def _scale_grid(shape: tuple[int, ...], block: Block) -> tuple[int, int]:
    """The rows and columns of the matrix of scales."""
    rows, columns = matrix_of(shape)
    return -(-rows // block[0]), -(-columns // block[1])


def _zero_points(
    tensors: Tensors, zero_points: Layer, grid: tuple[int, int], scales: Layer, bits: int | None
) -> Place:
    """The place of zero points: int8 in the scales' shape, or packed along the rows: int32 […, words, groups]. grid:
    rows and columns of the scales."""
    one_to_one = zero_points.dtype == "int8" and math.prod(zero_points.shape) == math.prod(scales.shape)
    if not (one_to_one or (bits is not None and _are_packed(zero_points, grid, scales, bits))):
        message = f"zero points {list(zero_points.shape)} of {zero_points.dtype} do not fit scales {list(scales.shape)}"
        refuse(f"{message}; download the file again", zero_points)
    return tensors.place(zero_points)


def _are_packed(zero_points: Layer, grid: tuple[int, int], scales: Layer, bits: int) -> bool:
    rows, columns = grid
    words = (*scales.shape[:-2], word_rows(rows, bits), columns)
    return zero_points.dtype == "int32" and zero_points.shape == words


def _groups(tensors: Tensors, groups: Layer, shape: tuple[int, ...]) -> Place:
    if groups.dtype != "int32" or groups.shape != shape[-1:] or len(shape) != 2:
        message = (
            f"{list(groups.shape)} of {groups.dtype} do not fit as the groups of the columns of {list(shape)}"
        )
        refuse(message, groups)
    return tensors.place(groups)


def _companion(codes: Layer, name: str, tensors: Tensors) -> Layer:
    found: Mapping[str, Layer] = tensors.by_name
    if name not in found:
        refuse(
            f"these are codes of compressed-tensors, but {name} is missing; download the checkpoint again",
            codes,
        )
    return found[name]
