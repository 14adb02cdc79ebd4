"""NVFP4: 4-bit floats (e2m1), two per byte, with a float8 scale for each 16, and a float32 scale that these share.

compressed-tensors has X_packed, X_scale and X_global_scale: x = code · (scale / global scale). ModelOpt has X,
X_scale and X_scale_2 (X_weight_scale … for fused experts): x = code · (scale · scale_2). It stores the fused experts
of Llama-4 and gpt-oss as [experts, in / 2, out], as in the model: their scales [experts, in / 16, out] show it.
"""

from __future__ import annotations

import math

from arrowquant_dist.checkpoint.quantized.names import HALVES, scale_names
from arrowquant_dist.checkpoint.quantized.tensors import Tensors, refuse
from arrowquant_dist.checkpoint.table import Layer
from arrowquant_dist.encodings.nvfp4 import Nvfp4
from arrowquant_dist.encodings.place import Place
from arrowquant_dist.encodings.row_pairs import Nvfp4RowPairs

_PACKED = "_packed"
_CODE_DTYPES = ("uint8", "int8", "float4_e2m1fn_x2")
_SCALES = "float8_e4m3fn"
_GROUPS = (16, 32)  # 32: for weights used with float8 activations
_GLOBAL_DTYPES = ("float32", "bfloat16", "float16")


def add_nvfp4(tensors: Tensors) -> None:
    """Adds the layers of such codes. Raises InvalidCheckpoint, naming scales that are missing or do not fit.

    Codes without a second level of scales belong to another format, unless their dtype says what they are.
    """
    for codes in list(tensors.by_name.values()):
        if codes.dtype not in _CODE_DTYPES or not codes.nbytes or not codes.shape:
            continue
        if not tensors.is_free(codes.name):
            continue
        base = codes.name.removesuffix(_PACKED)
        scales = _scales(tensors, base)
        if scales is None:
            continue
        if base != codes.name:
            _add(tensors, codes, base, scales, _divisor(tensors, codes, base))
        elif scales.name + "_2" in tensors.by_name:
            _add(tensors, codes, base, scales, tensors.by_name[scales.name + "_2"])
        elif codes.dtype not in ("uint8", "int8"):
            _add(tensors, codes, base, scales, None)


def _scales(tensors: Tensors, base: str) -> Layer | None:
    found = (tensors.by_name.get(name) for name in scale_names(base))
    return next((scales for scales in found if scales is not None and scales.dtype == _SCALES), None)


def _divisor(tensors: Tensors, codes: Layer, base: str) -> Layer:
    name = f"{base}_global_scale"
    if name not in tensors.by_name:
        refuse(f"these are codes of NVFP4, but {name} is missing; download the checkpoint again", codes)
    return tensors.by_name[name]


def _add(tensors: Tensors, codes: Layer, base: str, scales: Layer, shared: Layer | None) -> None:
    *lead, rows, columns = (1, *codes.shape) if len(codes.shape) == 1 else codes.shape
    place = tensors.place(scales)
    tensors.place(codes)
    parts = [scales.name] if shared is None else [scales.name, shared.name]
    found = _shared(tensors, codes, shared) if shared is not None else None
    factor, divisor = (found, None) if base == codes.name else (None, found)
    for group in _GROUPS:
        if columns * 2 % group == 0 and scales.shape == (*codes.shape[:-1], columns * 2 // group):
            shape = (*codes.shape[:-1], columns * 2)
            tensors.add(codes, base, shape, Nvfp4(group, place, factor, divisor), parts)
            return
        if rows * 2 % group == 0 and scales.shape == (*lead, rows * 2 // group, columns):
            encoding = Nvfp4RowPairs(group, place, factor, divisor)
            tensors.add(codes, base, (*lead, rows * 2, columns), encoding, parts)
            return
    message = (
        f"{list(scales.shape)} do not fit as scales for each 16 values of {codes.name} {list(codes.shape)}"
    )
    refuse(f"{message}; download the file again", scales)


def _shared(tensors: Tensors, codes: Layer, shared: Layer) -> Place:
    """The place of the shared scale: one for all, one for each matrix of a stack, or two for the halves of a matrix
    that was put together from two."""
    lead = codes.shape[:-2]
    fitting = [lead, (*lead, 1), (*lead, 1, 1)]
    if HALVES in codes.name and codes.shape[-2] % 2 == 0:
        fitting += [(*lead, 2), (*lead, 2, 1)]
    if shared.dtype not in _GLOBAL_DTYPES or not (math.prod(shared.shape) == 1 or shared.shape in fitting):
        message = f"{list(shared.shape)} of {shared.dtype} does not fit as the scale that those of {codes.name} share"
        refuse(f"{message} ({list(codes.shape)}); download the file again", shared)
    return tensors.place(shared)
