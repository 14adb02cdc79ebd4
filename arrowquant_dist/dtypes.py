"""The dtypes of source tensors: their names (torch's), their sizes, and how numpy holds their bits.

numpy has no bfloat16 or float8, so such values are held as unsigned integers of their width; the dtype's name says
what they mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Dtype:
    """One source dtype.

    name: torch's name (`bfloat16`). itemsize: bytes a value. bits: numpy dtype that holds a value's bits (float32 →
    float32, bfloat16 → uint16, float8 → uint8). is_float: whether tensors of the dtype can be quantized. safetensors:
    its code in safetensors headers.
    float8_e8m0fnu (powers of two) and float4_e2m1fn_x2 (two values a byte, which torch counts and shapes as one) are
    dtypes of scales and codes, not of floats to quantize.
    """

    name: str
    itemsize: int
    bits: np.dtype
    is_float: bool
    safetensors: str


_NOT_QUANTIZED = ("float8_e8m0fnu", "float4_e2m1fn_x2")


def _dtype(name: str, bits: str, safetensors: str) -> Dtype:
    numpy_dtype = np.dtype(bits).newbyteorder("<")
    is_float = "float" in name and name not in _NOT_QUANTIZED
    return Dtype(name, numpy_dtype.itemsize, numpy_dtype, is_float, safetensors)


DTYPES: dict[str, Dtype] = {
    d.name: d
    for d in (
        _dtype("float64", "f8", "F64"),
        _dtype("float32", "f4", "F32"),
        _dtype("float16", "f2", "F16"),
        _dtype("bfloat16", "u2", "BF16"),
        _dtype("float8_e4m3fn", "u1", "F8_E4M3"),
        _dtype("float8_e5m2", "u1", "F8_E5M2"),
        _dtype("float8_e8m0fnu", "u1", "F8_E8M0"),
        _dtype("float4_e2m1fn_x2", "u1", "F4"),
        _dtype("int64", "i8", "I64"),
        _dtype("int32", "i4", "I32"),
        _dtype("int16", "i2", "I16"),
        _dtype("int8", "i1", "I8"),
        _dtype("uint64", "u8", "U64"),
        _dtype("uint32", "u4", "U32"),
        _dtype("uint16", "u2", "U16"),
        _dtype("uint8", "u1", "U8"),
        _dtype("bool", "?", "BOOL"),
    )
}
BY_SAFETENSORS: dict[str, Dtype] = {d.safetensors: d for d in DTYPES.values()}
