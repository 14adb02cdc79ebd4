"""Packers that make GGUF's tensors from a layer's rows: codes as they are, or values.

In the file, a GGUF tensor has its dimensions in reverse order; here a shape is the layer's. Blocks run along the last
dimension, so packed rows are independent and may be reordered as wholes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from arrowquant_dist.arena import Allocate, fresh
from arrowquant_dist.config import BITS
from arrowquant_dist.errors import UnquantizableWeights
from arrowquant_dist.export.gguf.blocks import BLOCKS, in_four_bits
from arrowquant_dist.export.gguf.scales import Fp16, fate_of, half_minima, half_scales
from arrowquant_dist.export.tensors import OutputTensor
from arrowquant_dist.tensor import QuantizedTensor

_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_PACKED_AT_ONCE = 1 << 21  # bytes of codes, so that what is made of their scales stays in the cache


@dataclass(frozen=True, slots=True)
class CodeBlocks:
    """Packs a matrix as GGML's blocks, with V2's codes as they are.

    dtype: `Q8_0`, `Q4_0`, `Q4_1` or `TQ2_0`. layer: the dataset's name of it, for errors. head_rows: rows of an
    attention head if the rows of its two halves have to alternate (llama's rotary embedding in GGUF), or 0. widened:
    whether codes of fewer bits than the blocks' are widened to four (with unchanged values).
    """

    dtype: str
    layer: str
    head_rows: int = 0
    widened: bool = False

    @property
    def row_multiple(self) -> int:
        return self.head_rows or 1

    def tensors(self, name: str, shape: tuple[int, ...]) -> tuple[OutputTensor, ...]:
        layout = BLOCKS[self.dtype]
        nbytes = math.prod(shape) // layout.values * layout.nbytes
        return (OutputTensor(name, self.dtype, shape, nbytes),)

    def pack(self, _tensor: int, rows: QuantizedTensor, take: Allocate = fresh) -> np.ndarray:
        layout = BLOCKS[self.dtype]
        count, columns = rows.matrix_shape
        blocks = columns // layout.values
        out = take(count * blocks * layout.nbytes)
        by_row = out.reshape(count, blocks, layout.nbytes)
        at_once = _PACKED_AT_ONCE // max(1, columns * layout.bits // 8 * self.row_multiple)
        step = max(1, at_once) * self.row_multiple
        for start in range(0, count if out.size else 0, step):
            stop = min(start + step, count)
            self._fill(rows.rows(start, stop), by_row[start:stop])
        return out

    def _fill(self, rows: QuantizedTensor, out: np.ndarray) -> None:
        """Writes the rows' blocks to `out`, uint8 [rows, blocks, bytes]."""
        bits, (count, columns) = BITS[rows.quant_type], rows.matrix_shape
        codes = rows.codes.reshape(count, -1)
        if self.widened:
            codes = in_four_bits(codes, bits, is_symmetric=self.dtype != "Q4_1")
        places = in_turns(out, self.head_rows)
        codes = codes.reshape(*places.shape[:-1], -1)
        halves = [_by_row(found, rows, places.shape[:-2]) for found in self._halves(rows, bits)]
        layout = BLOCKS[self.dtype]
        for blocks, groups, of_group in _groups(out.shape[1], (rows.group_size or columns) // layout.values):
            shape = (*places.shape[:-2], groups.stop - groups.start, of_group)
            layout.fill(
                codes[..., blocks, :].reshape(*shape, -1),
                [np.broadcast_to(found[..., groups, None], shape) for found in halves],
                places[..., blocks, :].reshape(*shape, -1),
            )

    def _halves(self, rows: QuantizedTensor, bits: int) -> list[np.ndarray]:
        """Returns float16 scales and, if asymmetric, minima, one for each scale."""
        fate = fate_of(rows.scales, rows.zero_points, bits)
        if fate is not Fp16.HOLDS:  # possible for layers quantized anew; others were checked before
            problem = (
                "beyond the range of fp16"
                if fate is Fp16.BEYOND
                else "too small beside their minima for fp16"
            )
            message = f"scales are {problem}, in which GGUF stores them; keep this layer in 16 bits"
            raise UnquantizableWeights(
                f"{message} when you quantize (mixed_precision_layers)", layer=self.layer
            )
        scales = half_scales(rows.scales)
        if self.dtype == "Q4_1":
            return [scales, half_minima(rows.scales, rows.zero_points, bits)]
        return [-scales if BLOCKS[self.dtype].counts_down else scales]


@dataclass(frozen=True, slots=True)
class FloatValues:
    """Packs a layer's values, decoded if they are codes. dtype: `F32`, `F16` or `BF16`. head_rows, layer: as in
    `CodeBlocks`."""

    dtype: str
    head_rows: int = 0
    layer: str = ""

    @property
    def row_multiple(self) -> int:
        return self.head_rows or 1

    def tensors(self, name: str, shape: tuple[int, ...]) -> tuple[OutputTensor, ...]:
        return (OutputTensor(name, self.dtype, shape, math.prod(shape) * (4 if self.dtype == "F32" else 2)),)

    def pack(self, _tensor: int, rows: QuantizedTensor, take: Allocate = fresh) -> np.ndarray:
        if rows.quant_type == "none" and rows.dtype == "float64":  # the only dtype wider than its place
            self._refuse_lost(rows.codes.view("<f8"))
        values = rows.bytes_as(_FLOATS[self.dtype], take)
        if not self.head_rows:
            return values
        out = take(values.size)
        places = in_turns(out.reshape(rows.matrix_shape[0], -1), self.head_rows)
        places[...] = values.reshape(places.shape)
        return out

    def _refuse_lost(self, wide: np.ndarray) -> None:
        """Raises UnquantizableWeights for finite nonzero float64 values outside float32's range of normal numbers."""
        sizes = np.abs(wide)
        limits = np.finfo(np.float32)
        lost = np.isfinite(wide) & ((sizes > limits.max) | ((sizes < limits.tiny) & (sizes != 0)))
        if lost.any():
            value = wide[lost][0]
            message = f"has {value:g}, but GGUF has no float64; store float32 numbers in the source"
            raise UnquantizableWeights(f"{message} and quantize it again", layer=self.layer or None)


def in_turns(out: np.ndarray, head_rows: int) -> np.ndarray:
    """Returns a view of `out` [heads · head_rows, …] as [heads, 2, head_rows / 2, …]: the places for each head's rows
    in their order, first half and second half, whose rows alternate in `out`: 0, n/2, 1, n/2 + 1 …

    GGUF's llama rotates neighbours, transformers rotates value i with i + n/2. With head_rows 0 the rows stay as they
    are, [1, 1, rows, …].
    """
    if not head_rows:
        return out[None, None]
    return out.reshape(-1, head_rows // 2, 2, *out.shape[1:]).swapaxes(1, 2)


def _by_row(values: np.ndarray, rows: QuantizedTensor, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the values that `rows` have for each scale, [*shape, groups per row]. shape: that of the rows; a single
    value for all is broadcast without memory of its own."""
    return np.broadcast_to(values, (*shape, 1)) if rows.quant_axis < 0 else values.reshape(*shape, -1)


def _groups(blocks: int, of_group: int) -> Iterator[tuple[slice, slice, int]]:
    """Yields runs of a row's groups that have the same number of blocks: their blocks, the groups, and the number of
    blocks in each. The last group may have fewer than `of_group`."""
    whole, left = divmod(blocks, of_group)
    if whole:
        yield slice(0, whole * of_group), slice(0, whole), of_group
    if left:
        yield slice(whole * of_group, blocks), slice(whole, whole + 1), left
