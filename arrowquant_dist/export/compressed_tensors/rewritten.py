"""What packers make of rows that are changed first.

Codes in more bits and groups cut into finer ones are other bytes for the same values, so that nothing is lost.

A code of 3 bits is one of 4, with the same scale; a group of 64 columns is two of 32 whose scales are equal. Scales
that are rounded are others, and a note says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from arrowquant_dist.arena import Allocate, fresh
from arrowquant_dist.config import BITS
from arrowquant_dist.export.compressed_tensors.packers import ScaleDtype, rounded_scales
from arrowquant_dist.export.tensors import OutputTensor, Packer
from arrowquant_dist.tensor import QuantizedTensor

_CODES_AT_ONCE = 1 << 18  # that are eight bytes each meanwhile


@dataclass(frozen=True, slots=True)
class _Changed:
    """The tensors of `packer`, for packers that give it other rows."""

    packer: Packer

    @property
    def row_multiple(self) -> int:
        return self.packer.row_multiple

    def tensors(self, name: str, shape: tuple[int, ...]) -> tuple[OutputTensor, ...]:
        return self.packer.tensors(name, shape)


@dataclass(frozen=True, slots=True)
class RewrittenRows(_Changed):
    """What `packer` makes of rows whose codes have `bits` bits and each of whose groups is `finer` ones."""

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
        """Scales or zero points of each of the finer groups, a row's after the other."""
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
    """What `packer` makes of rows whose scales are rounded to `dtype` first, which does not hold all of them."""

    dtype: ScaleDtype

    def pack(self, tensor: int, rows: QuantizedTensor, take: Allocate = fresh) -> np.ndarray:
        """See Packer.pack."""
        return self.packer.pack(tensor, replace(rows, scales=rounded_scales(rows.scales, self.dtype)), take)


def in_more_bits(codes: np.ndarray, columns: int, stored: int, bits: int) -> np.ndarray:
    """codes: uint8 [rows, row bytes], of `stored` bits as V2 packs them. Returns the same codes in `bits`, more: uint8
    [rows · row bytes]."""
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
