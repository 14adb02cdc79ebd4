"""Numbers that are stored beside scales, one for each scale: zero points in several formats, and biases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from arrowquant_dist.encodings.place import Place
from arrowquant_dist.tensor.source import as_float32

WORD_BITS = 32
_NIBBLES = 8  # in a word


class BesideScales(Protocol):
    """A number for each scale. Rows are those of the matrices of scales, counted over all matrices."""

    @property
    def place(self) -> Place: ...

    def stored_rows(self, rows: range) -> range:
        """The stored rows that hold the numbers for these rows of scales."""

    def stored_columns(self, columns: int) -> int:
        """Number of values stored in a row for `columns` scales."""

    def decode(self, found: np.ndarray, rows: range, columns: int) -> np.ndarray:
        """found: uint8, the bytes of `stored_rows(rows)`. Returns float32 [rows, columns]."""


@dataclass(frozen=True, slots=True)
class ZeroPoints:
    """Zero points of compressed-tensors' integers: int8 in the scales' shape; or `bits` bits each in offset binary,
    packed down the columns of each matrix into words: int32 […, words, groups].

    scale_rows: number of rows of scales of one matrix. Rows of scales and of words are counted over all matrices.
    """

    place: Place
    bits: int
    scale_rows: int

    @classmethod
    def of(cls, place: Place | None, bits: int, scale_rows: int) -> ZeroPoints | None:
        """None if all zero points are 0 and therefore not stored."""
        return None if place is None else cls(place, bits, scale_rows)

    @property
    def are_packed(self) -> bool:
        return self.place.dtype != "int8"

    def stored_rows(self, rows: range) -> range:
        if not self.are_packed:
            return rows
        return range(self._word_row(rows.start), self._word_row(rows.stop - 1) + 1)

    def stored_columns(self, columns: int) -> int:
        return columns

    def decode(self, found: np.ndarray, rows: range, columns: int) -> np.ndarray:
        if not self.are_packed:
            return found.view(np.int8).reshape(-1, columns).astype(np.float32)
        words = found.view("<u4").reshape(-1, columns)
        at = np.array([self._word_row(row) for row in rows]) - self._word_row(rows.start)
        shifts = np.arange(rows.start, rows.stop) % self.scale_rows * self.bits % WORD_BITS
        mask = np.uint32((1 << self.bits) - 1)
        unsigned: np.ndarray = (words[at] >> shifts[:, None].astype(np.uint32)) & mask
        return (unsigned.astype(np.int32) - (1 << (self.bits - 1))).astype(np.float32)

    def _word_row(self, scale_row: int) -> int:
        words = word_rows(self.scale_rows, self.bits)
        return scale_row // self.scale_rows * words + scale_row % self.scale_rows * self.bits // WORD_BITS


@dataclass(frozen=True, slots=True)
class NibbleZeros:
    """Zero points of unsigned 4-bit codes, packed along the rows from the low bits up: int32 [rows, scales / 8]."""

    place: Place

    def stored_rows(self, rows: range) -> range:
        return rows

    def stored_columns(self, columns: int) -> int:
        return columns // _NIBBLES

    def decode(self, found: np.ndarray, _rows: range, columns: int) -> np.ndarray:
        nibbles = np.stack([found & 15, found >> 4], axis=-1).reshape(-1, columns)
        # Kernels take signed codes, which are half the range below the stored ones, so zero points are moved as well.
        return nibbles.astype(np.float32) - np.float32(8)


@dataclass(frozen=True, slots=True)
class Biases:
    """Biases: floats in the scales' shape."""

    place: Place

    def stored_rows(self, rows: range) -> range:
        return rows

    def stored_columns(self, columns: int) -> int:
        return columns

    def decode(self, found: np.ndarray, _rows: range, columns: int) -> np.ndarray:
        return as_float32(found, self.place.dtype).reshape(-1, columns)


def word_rows(scale_rows: int, bits: int) -> int:
    """Number of rows of words that hold the zero points of one matrix with `scale_rows` rows of scales."""
    return -(-scale_rows * bits // WORD_BITS)
