"""What makes GGUF's tensors of a layer's rows: codes as they are, or values.

A tensor of GGUF has its dimensions the other way round in the file; here a shape is the layer's. Blocks run along the
last dimension, so packed rows stand alone and may be reordered whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from arrowquant_dist.config import BITS
from arrowquant_dist.errors import UnquantizableWeights
from arrowquant_dist.export.gguf.blocks import q4_0, q4_1, q8_0, tq2_0
from arrowquant_dist.export.gguf.scales import Fp16, half_minima, half_scales
from arrowquant_dist.export.tensors import OutputTensor
from arrowquant_dist.tensor import QuantizedTensor

BLOCK_VALUES = {"Q8_0": 32, "Q4_0": 32, "Q4_1": 32, "TQ2_0": 256}
_BLOCK_NBYTES = {"Q8_0": 34, "Q4_0": 18, "Q4_1": 20, "TQ2_0": 66}
_CODE_BITS = {"Q8_0": 8, "Q4_0": 4, "Q4_1": 4, "TQ2_0": 2}
_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_PACKED_AT_ONCE = 1 << 16  # bytes of codes: temporaries that stay in the cache, 4 times the rate of 1 MiB


@dataclass(frozen=True, slots=True)
class CodeBlocks:
    """A matrix as GGML's blocks, from V2's codes as they are.

    dtype: `Q8_0` `Q4_0` `Q4_1` `TQ2_0`. layer: the dataset's name of it, for errors. head_rows: rows of an attention
    head where those of its two halves are to take turns (llama's rotary embedding in GGUF), or 0. widened: codes of
    fewer bits than the blocks' are given four (the values stay what they are).
    """

    dtype: str
    layer: str
    head_rows: int = 0
    widened: bool = False

    @property
    def row_multiple(self) -> int:
        return self.head_rows or 1

    def tensors(self, name: str, shape: tuple[int, ...]) -> tuple[OutputTensor, ...]:
        nbytes = math.prod(shape) // BLOCK_VALUES[self.dtype] * _BLOCK_NBYTES[self.dtype]
        return (OutputTensor(name, self.dtype, shape, nbytes),)

    def pack(self, _tensor: int, rows: QuantizedTensor) -> np.ndarray:
        count, columns = rows.matrix_shape
        blocks = columns // BLOCK_VALUES[self.dtype]
        codes = rows.codes.reshape(count, -1)
        by_block = [_by_block(halves, rows, blocks) for halves in self._halves(rows)]
        out = np.empty((count, blocks, _BLOCK_NBYTES[self.dtype]), np.uint8)
        step = max(1, _PACKED_AT_ONCE // codes.shape[1])
        for start in range(0, count, step):
            part = slice(start, start + step)
            packed = self._packed(codes[part], rows, [of_block[part].reshape(-1) for of_block in by_block])
            out[part] = packed.reshape(-1, *out.shape[1:])
        return in_turns(out.reshape(count, -1), self.head_rows).reshape(-1)

    def _halves(self, rows: QuantizedTensor) -> list[np.ndarray]:
        """Scales and, where asymmetric, minima, float16, as many as there are scales."""
        bits = BITS[rows.quant_type]
        if self.dtype == "Q4_1":
            *halves, fate = half_minima(rows.scales, rows.zero_points, bits)
        else:
            *halves, fate = half_scales(rows.scales, bits)
        if fate is not Fp16.HOLDS:  # of layers that are quantized anew; of the others it was known before
            problem = (
                "beyond the range of fp16"
                if fate is Fp16.BEYOND
                else "too small beside their minima for fp16"
            )
            message = f"scales are {problem}, in which GGUF has them; keep this layer in 16 bits"
            raise UnquantizableWeights(
                f"{message} when you quantize (mixed_precision_layers)", layer=self.layer
            )
        return halves

    def _packed(self, codes: np.ndarray, rows: QuantizedTensor, by_block: list[np.ndarray]) -> np.ndarray:
        """codes: uint8 [rows, bytes]. by_block: scales and, where asymmetric, minima, float16 [blocks]."""
        if self.widened:
            bits, columns = BITS[rows.quant_type], rows.matrix_shape[1]
            codes = _widened(codes, bits, columns, is_symmetric=len(by_block) == 1)
        codes = np.ascontiguousarray(codes).reshape(by_block[0].size, -1)
        if self.dtype == "Q4_1":
            return q4_1(codes, *by_block)
        return {"Q8_0": q8_0, "Q4_0": q4_0, "TQ2_0": tq2_0}[self.dtype](codes, *by_block)


@dataclass(frozen=True, slots=True)
class FloatValues:
    """A layer's values, decoded where they are codes. dtype: `F32` `F16` `BF16`. head_rows, layer: as `CodeBlocks` has
    them."""

    dtype: str
    head_rows: int = 0
    layer: str = ""

    @property
    def row_multiple(self) -> int:
        return self.head_rows or 1

    def tensors(self, name: str, shape: tuple[int, ...]) -> tuple[OutputTensor, ...]:
        return (OutputTensor(name, self.dtype, shape, math.prod(shape) * (4 if self.dtype == "F32" else 2)),)

    def pack(self, _tensor: int, rows: QuantizedTensor) -> np.ndarray:
        values = rows.values(_FLOATS[self.dtype]).reshape(rows.matrix_shape)
        if rows.quant_type == "none" and rows.dtype == "float64":  # the only one that has more than its place
            self._refuse_lost(rows.codes.view("<f8"))
        return in_turns(values.view(np.uint8), self.head_rows).reshape(-1)

    def _refuse_lost(self, wide: np.ndarray) -> None:
        """UnquantizableWeights for finite float64 values, not 0, that float32 has not with all its digits."""
        sizes = np.abs(wide)
        limits = np.finfo(np.float32)
        lost = np.isfinite(wide) & ((sizes > limits.max) | ((sizes < limits.tiny) & (sizes != 0)))
        if lost.any():
            value = wide[lost][0]
            message = f"has {value:g}, and GGUF has no float64; store float32 numbers in the source"
            raise UnquantizableWeights(f"{message} and quantize it again", layer=self.layer or None)


def in_turns(rows: np.ndarray, head_rows: int) -> np.ndarray:
    """rows: [heads · head_rows, …]. Of each head, rows of its first and second half in turns: 0, n/2, 1, n/2 + 1 …

    GGUF's llama rotates neighbours, transformers' value i with i + n/2. head_rows 0: rows as they are.
    """
    if not head_rows:
        return rows
    halves = rows.reshape(-1, 2, head_rows // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def _by_block(values: np.ndarray, rows: QuantizedTensor, blocks: int) -> np.ndarray:
    """A group's value for each of its blocks: [rows, blocks] of what `rows` have a value of for each scale."""
    count, columns = rows.matrix_shape
    by_group = np.tile(values, (count, 1)) if rows.quant_axis < 0 else values.reshape(count, -1)
    repeats = (rows.group_size or columns) // (columns // blocks)
    return np.repeat(by_group, repeats, axis=1)[:, :blocks]


def _widened(codes: np.ndarray, bits: int, columns: int, *, is_symmetric: bool) -> np.ndarray:
    """Packed codes of 2 or 3 bits [rows, bytes] as packed codes of 4. uint8, both.

    Symmetric ones keep q; the others keep u = q + 2^(bits-1), which is what minima count from.
    """
    apart = np.unpackbits(codes, axis=1, count=columns * bits, bitorder="little")
    unsigned = apart.reshape(*codes.shape[:1], columns, bits) @ (1 << np.arange(bits, dtype=np.uint8))
    wide = (unsigned + (8 - (1 << (bits - 1)) if is_symmetric else 0)).astype(np.uint8)
    packed: np.ndarray = wide[:, ::2] | (wide[:, 1::2] << np.uint8(4))
    return packed
