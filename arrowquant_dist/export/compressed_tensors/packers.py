"""Packs a layer's rows into the tensors of compressed-tensors' formats `pack-quantized` and `int-quantized`.

Codes are stored as u = q + 2^(b-1) in one little-endian stream of bits per row: the same as V2's rows below 8 bits,
except for the padding to whole int32 words. Zero points are packed in the same way along dim 0. x̂ = (q - zero_point) ·
scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from arrowquant_dist.arena import Allocate, fresh
from arrowquant_dist.errors import CorruptWeights
from arrowquant_dist.export.tensors import OutputTensor
from arrowquant_dist.tensor import QuantizedTensor

ScaleDtype = Literal["F32", "BF16", "F16"]

_WORD_BITS = 32
_WORD_NBYTES = 4
_SCALE_NBYTES = {"F32": 4, "BF16": 2, "F16": 2}
_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_ROUNDED_AT_ONCE = 1 << 14  # scales: temporaries that stay in the cache; larger ones take fresh pages


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """`pack-quantized`: weight_packed, weight_scale, weight_zero_point if asymmetric, weight_shape.

    bits: 2, 4 or 8. out_features: rows of the whole layer. group_size: columns per scale, which divides all columns; 0
    for one scale per row, which a layer with a single scale gets too. symmetric: without zero points. scale_dtype:
    safetensors' name of a dtype that represents all scales.
    """

    bits: int
    out_features: int
    group_size: int
    symmetric: bool
    scale_dtype: ScaleDtype

    @property
    def row_multiple(self) -> int:
        """The number of rows whose zero points fill a word; 1 if there are none."""
        return 1 if self.symmetric else _WORD_BITS // self.bits

    def tensors(self, name: str, shape: tuple[int, ...]) -> tuple[OutputTensor, ...]:
        """See Packer.tensors. name: that of a Linear's weight, `….weight`. shape: [out, in]."""
        rows, columns = shape
        module = name.removesuffix(".weight")
        groups = columns // self.group_size if self.group_size else 1
        words, zero_words = (-(-count * self.bits // _WORD_BITS) for count in (columns, rows))
        nbytes = rows * groups * _SCALE_NBYTES[self.scale_dtype]
        packed = OutputTensor(f"{module}.weight_packed", "I32", (rows, words), rows * words * _WORD_NBYTES)
        scale = OutputTensor(f"{module}.weight_scale", self.scale_dtype, (rows, groups), nbytes, "scales")
        nbytes = zero_words * groups * _WORD_NBYTES
        zeros = OutputTensor(f"{module}.weight_zero_point", "I32", (zero_words, groups), nbytes, "scales")
        whole_shape = OutputTensor(f"{module}.weight_shape", "I64", (2,), 16, "nothing")
        return (packed, scale, whole_shape) if self.symmetric else (packed, scale, whole_shape, zeros)

    def pack(self, tensor: int, rows: QuantizedTensor, take: Allocate = fresh) -> np.ndarray:
        """See Packer.pack."""
        if tensor == 0:
            return packed_words(rows, self.bits, take)
        if tensor == 1:
            return exact_scales(_by_row(rows.scales, rows), self.scale_dtype)
        if tensor == 2:
            _, columns = rows.matrix_shape
            return np.array([self.out_features, columns], "<i8").view(np.uint8)
        return packed_zero_points(_whole(_by_row(rows.zero_points, rows), self.bits), self.bits)


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """`int-quantized`: weight, unchanged int8 codes, and weight_scale, one per row."""

    scale_dtype: ScaleDtype

    @property
    def row_multiple(self) -> int:
        return 1

    def tensors(self, name: str, shape: tuple[int, ...]) -> tuple[OutputTensor, ...]:
        """See Packer.tensors. name: that of a Linear's weight, `….weight`. shape: [out, in]."""
        rows, columns = shape
        scale = f"{name.removesuffix('.weight')}.weight_scale"
        nbytes = rows * _SCALE_NBYTES[self.scale_dtype]
        return (
            OutputTensor(name, "I8", (rows, columns), rows * columns),
            OutputTensor(scale, self.scale_dtype, (rows, 1), nbytes, "scales"),
        )

    def pack(self, tensor: int, rows: QuantizedTensor, _take: Allocate = fresh) -> np.ndarray:
        """See Packer.pack."""
        return rows.codes if tensor == 0 else exact_scales(_by_row(rows.scales, rows), self.scale_dtype)


def packed_words(rows: QuantizedTensor, bits: int, take: Allocate = fresh) -> np.ndarray:
    """Returns codes of V2 as int32 words, each row padded with zeros to whole words.

    rows: [rows, columns], with codes of `bits` bits. Returns uint8 [rows · words · 4]: rows.codes itself if these are
    the words already, otherwise memory from `take`.
    """
    count, columns = rows.matrix_shape
    width = -(-columns * bits // _WORD_BITS) * _WORD_NBYTES
    stored = rows.codes.reshape(count, -(-columns * bits // 8))
    used = stored.shape[1]
    if bits != 8 and used == width:
        return rows.codes
    words = take(count * width).reshape(count, width)
    words[:, used:] = 0
    other = np.uint8(0x80 if bits == 8 else 0)  # turns a signed byte into q + 128
    np.bitwise_xor(stored, other, out=words[:, :used])
    return words.reshape(-1)


def packed_zero_points(zero_points: np.ndarray, bits: int) -> np.ndarray:
    """Packs whole zero points into int32 words along dim 0, the first row in the lowest bits.

    zero_points: float32 [rows, groups] within [-2^(b-1), 2^(b-1) - 1]. bits: 2, 4 or 8. Returns uint8, the bytes of
    int32 [ceil(rows · bits / 32), groups]; unused bits of the last word are 0.
    """
    count, groups = zero_points.shape
    in_word = _WORD_BITS // bits
    padded = np.zeros((-(-count // in_word) * in_word, groups), np.uint32)
    padded[:count] = (zero_points + np.float32(1 << (bits - 1))).astype(np.uint32)
    shifts = (np.arange(in_word, dtype=np.uint32) * np.uint32(bits))[None, :, None]
    shifted = padded.reshape(-1, in_word, groups) << shifts
    words = np.bitwise_or.reduce(shifted, axis=1)
    return np.ascontiguousarray(words, "<u4").reshape(-1).view(np.uint8)


def scale_bytes(scales: np.ndarray, dtype: ScaleDtype) -> np.ndarray:
    """Returns float32 scales rounded half to even to `dtype`, as uint8; beyond float16's range they become inf."""
    flat = np.ascontiguousarray(scales, "<f4").reshape(-1)
    if dtype == "F32":
        return flat.view(np.uint8)
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return flat.astype("<f2").view(np.uint8)
    wide, halves = flat.view("<u4"), np.empty(flat.size, "<u2")
    for start in range(0, flat.size, _ROUNDED_AT_ONCE):
        part = wide[start : start + _ROUNDED_AT_ONCE]
        halves[start : start + part.size] = (part + np.uint32(0x7FFF) + ((part >> 16) & 1)) >> 16
    return halves.view(np.uint8)


def exact_scales(scales: np.ndarray, dtype: ScaleDtype) -> np.ndarray:
    """Returns float32 scales as `dtype`, uint8. Raises CorruptWeights if `dtype` cannot represent one of them: the plan
    relied on what the dataset says about itself, and that is not what is stored."""
    flat = np.ascontiguousarray(scales, "<f4").reshape(-1)
    if dtype == "BF16" and not int(np.bitwise_or.reduce(flat.view("<u4"), initial=0)) & 0xFFFF:
        return flat.view("<u2")[1::2].copy().view(np.uint8)  # the upper halves of their bits
    stored = scale_bytes(flat, dtype)
    if not np.array_equal(_numbers(stored, dtype), flat):
        message = f"scales are not exact in {_NAMES[dtype]}, although the manifest says so"
        raise CorruptWeights(f"{message}; quantize again, or use --requantize")
    return stored


def scales_are(scales: np.ndarray, dtype: ScaleDtype) -> bool:
    """Returns whether `dtype` represents each of these float32 numbers exactly."""
    return bool(np.array_equal(rounded_scales(scales, dtype), scales.reshape(-1)))


def rounded_scales(scales: np.ndarray, dtype: ScaleDtype) -> np.ndarray:
    """Returns the values, float32 [n], that readers get from these float32 scales [n] as `dtype`; inf beyond its
    range."""
    return _numbers(scale_bytes(scales, dtype), dtype)


def _numbers(stored: np.ndarray, dtype: ScaleDtype) -> np.ndarray:
    """Returns the numbers, float32 [n], in what `scale_bytes` returns."""
    if dtype == "F32":
        return stored.view("<f4")
    if dtype == "F16":
        return stored.view("<f2").astype(np.float32)
    return (stored.view("<u2").astype("<u4") << 16).view("<f4")


def are_whole(zero_points: np.ndarray, bits: int) -> bool:
    """Returns whether all zero points (float32) are whole numbers in the range of codes with this many bits."""
    half = 1 << (bits - 1)
    in_range = (zero_points >= -half) & (zero_points <= half - 1)
    return bool((in_range & (zero_points == np.rint(zero_points))).all())


def _whole(zero_points: np.ndarray, bits: int) -> np.ndarray:
    """Returns the zero points. Raises CorruptWeights unless they are whole, as the manifest says they are."""
    if not are_whole(zero_points, bits):
        message = f"zero points are not whole numbers within {bits} bits, although the manifest says so"
        raise CorruptWeights(f"{message}; quantize again, or use --requantize")
    return zero_points


def _by_row(scales: np.ndarray, rows: QuantizedTensor) -> np.ndarray:
    """Returns [rows, groups per row]; a layer's only scale is repeated for each row."""
    count, _ = rows.matrix_shape
    return np.repeat(scales[None, :], count, axis=0) if rows.quant_axis < 0 else scales.reshape(count, -1)
