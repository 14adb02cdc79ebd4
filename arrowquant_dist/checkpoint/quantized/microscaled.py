"""4-bit floats (e2m1) with a power of two (e8m0) for each 32: MXFP4, of gpt-oss and others.

gpt-oss stores X_blocks [experts, out, groups, 16] and X_scales [experts, out, groups]. The layer is X [experts, in,
out], as in the model's bfloat16 releases and as transformers decodes it: the stored matrices transposed. The
reference checkpoint of the same model has X.blocks and X.scales, whose layer X stays [experts, out, in].
compressed-tensors' mxfp4-pack-quantized has X_packed [out, in / 2] and X_scale [out, in / 32]; DeepSeek-V4's experts
have X itself and its scales.
"""

from __future__ import annotations

from arrowquant_dist.checkpoint.quantized.tensors import Tensors, refuse
from arrowquant_dist.checkpoint.table import Layer
from arrowquant_dist.encodings.microscaled import GROUP, GROUP_CODES_NBYTES, Microscaled
from arrowquant_dist.encodings.transposed import TransposedMicroscaled

E8M0 = "float8_e8m0fnu"
_SCALE_DTYPES = ("uint8", E8M0)
_CODE_DTYPES = ("uint8", "int8", "float4_e2m1fn_x2")


def add_experts(tensors: Tensors) -> None:
    """Adds the layers of blocks and scales. Blocks without scales stay as they are. Raises InvalidCheckpoint, naming
    tensors that do not fit."""
    for between in ("_", "."):
        for codes in tensors.by_name.values():
            base = codes.name.removesuffix(f"{between}blocks")
            scales = tensors.by_name.get(f"{base}{between}scales")
            is_free = tensors.is_free(codes.name)
            if base == codes.name or scales is None or not _are_blocks(codes) or not is_free:
                continue
            _check(codes, scales, codes.shape[:-1])
            experts, rows, groups = codes.shape[:-1]
            columns = groups * GROUP
            place = tensors.place(scales, E8M0)
            tensors.place(codes)
            if between == "_":
                stored = TransposedMicroscaled(place)
                tensors.add(codes, base, (experts, columns, rows), stored, [scales.name])
            else:
                tensors.add(codes, base, (experts, rows, columns), Microscaled(place), [scales.name])


def add_packed(tensors: Tensors) -> None:
    """Adds the layers of packed pairs with a scale per 32 values: X_packed and X_scale, or X and X_scale of e8m0."""
    for codes in tensors.by_name.values():
        if (
            codes.dtype not in _CODE_DTYPES
            or not codes.nbytes
            or not codes.shape
            or not tensors.is_free(codes.name)
        ):
            continue
        base = codes.name.removesuffix("_packed")
        scales = tensors.scales_of(base)
        if scales is None or scales.dtype not in (_SCALE_DTYPES if base != codes.name else (E8M0,)):
            continue
        shape = (*codes.shape[:-1], codes.shape[-1] * 2)
        _check(codes, scales, (*codes.shape[:-1], shape[-1] // GROUP))
        tensors.place(codes)
        tensors.add(codes, base, shape, Microscaled(tensors.place(scales, E8M0)), [scales.name])


def _are_blocks(codes: Layer) -> bool:
    return (
        codes.dtype == "uint8"
        and codes.nbytes > 0
        and len(codes.shape) == 4
        and codes.shape[-1] == GROUP_CODES_NBYTES
    )


def _check(codes: Layer, scales: Layer, shape: tuple[int, ...]) -> None:
    if (
        scales.dtype not in _SCALE_DTYPES
        or scales.shape != shape
        or shape[-1] * GROUP_CODES_NBYTES != _row_nbytes(codes)
    ):
        message = (
            f"{list(scales.shape)} of {scales.dtype} do not fit as scales for each 32 values of {codes.name}"
        )
        refuse(f"{message} {list(codes.shape)}; download the file again", scales)


def _row_nbytes(codes: Layer) -> int:
    return codes.shape[-1] * (codes.shape[-2] if _are_blocks(codes) else 1)
