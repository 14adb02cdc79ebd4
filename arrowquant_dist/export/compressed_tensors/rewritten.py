"""Packers that change rows before another packer packs them.

Giving codes more bits and cutting groups into finer ones changes the bytes but not the values, so nothing is lost: a
code of 3 bits is a code of 4 bits with the same scale, and a group of 64 columns is two of 32 with equal scales.
Rounded scales do change values, and a note says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from arrowquant_dist.arena import Allocate, fresh
from arrowquant_dist.config import BITS
from arrowquant_dist.export.compressed_tensors.packers import ScaleDtype, rounded_scales
from arrowquant_dist.export.tensors import OutputTensor, Packer
from arrowquant_dist.tensor import QuantizedTensor

_CODES_AT_ONCE = 1 << 18  # each takes eight bytes meanwhile


@dataclass(frozen=True, slots=True)
class _Changed:
    """Has the tensors of `packer`; subclasses give it changed rows."""

    packer: Packer

    @property
    def row_multiple(self) -> int:
        return self.packer.row_multiple

    def tensors(self, name: str, shape: tuple[int, ...]) -> tuple[OutputTensor, ...]:
        return self.packer.tensors(name, shape)


@dataclass(frozen=True, slots=True)
class RewrittenRows(_Changed):
    """Gives `packer` rows whose codes have `bits` bits, and each of whose groups is cut into `finer` ones."""

    bits: int
    finer: int

    def pack(self, tensor: int, rows: QuantizedTensor, take: Allocate = fresh) -> np.ndarray:
        """See Packer.pack."""
        count, columns = rows.matrix_shape
        codes, stored = rows.codes, BITS.get(rows.quant_type)
        if codes.size and stored is not None and stored != self.bits:
            codes = in_more_bits(codes.reshape(count, -1), columns, stored, self.bits)
        scales, zero_points = (self._finer(numbers, rows) for numbers in (rows.scales, rows.zero_points))
        quant_type, axis = f"int{self.bits}", 0
        rewritten = replace(
            rows, codes=codes, scales=scales, zero_points=zero_points, quant_type=quant_type, quant_axis=axis
        )
        return self.packer.pack(tensor, rewritten, take)

    def _finer(self, numbers: np.ndarray, rows: QuantizedTensor) -> np.ndarray:
        """Returns the scales or zero points of the finer groups, row by row."""
        count, columns = rows.matrix_shape
        if not numbers.size:
            return numbers
        if rows.quant_axis < 0:
            return np.repeat(numbers, count * self.finer)
        size = (rows.group_size or columns) // self.finer
        by_row = np.repeat(numbers.reshape(count, -1), self.finer, axis=1)
        return np.ascontiguousarray(by_row[:, : -(-columns // size)]).reshape(-1)


@dataclass(frozen=True, slots=True)
class RoundedScales(_Changed):
    """Gives `packer` rows whose scales are rounded to `dtype`, which cannot represent all of them."""

    dtype: ScaleDtype

    def pack(self, tensor: int, rows: QuantizedTensor, take: Allocate = fresh) -> np.ndarray:
        """See Packer.pack."""
        return self.packer.pack(tensor, replace(rows, scales=rounded_scales(rows.scales, self.dtype)), take)


def in_more_bits(codes: np.ndarray, columns: int, stored: int, bits: int) -> np.ndarray:
    """Returns the same codes in more bits. codes: uint8 [rows, row bytes], codes of `stored` bits as V2 packs them. The
    result has `bits` bits per code: uint8 [rows · row bytes]."""
    rows = len(codes)
    out = np.empty((rows, -(-columns * bits // 8)), np.uint8)
    step = max(1, _CODES_AT_ONCE // max(columns, 1))
    weights = (1 << np.arange(stored)).astype(np.uint8)
    raised = np.uint8((1 << (bits - 1)) - (1 << (stored - 1)))
    for start in range(0, rows, step):
        stream = np.unpackbits(codes[start : start + step], axis=1, bitorder="little")[:, : columns * stored]
        unsigned = stream.reshape(-1, columns, stored) @ weights + raised
        if bits == 8:
            out[start : start + step] = unsigned ^ np.uint8(0x80)  # a signed byte
        else:
            as_bits = (unsigned[:, :, None] >> np.arange(bits, dtype=np.uint8)) & 1
            flat = as_bits.reshape(len(unsigned), -1)
            out[start : start + step] = np.packbits(flat, axis=1, bitorder="little")
    return out.reshape(-1)
