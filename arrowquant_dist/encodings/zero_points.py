"""What is stored beside scales, a number for each: zero points in the ways that there are, and biases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from arrowquant_dist.encodings.place import Place
from arrowquant_dist.tensor.source import as_float32

WORD_BITS = 32
_NIBBLES = 8  # of a word


class BesideScales(Protocol):
    """A number for each scale. Rows are those of the scales' matrices, counted over all of them."""

    @property
    def place(self) -> Place: ...

    def stored_rows(self, rows: range) -> range:
        """The rows as they are stored that hold the numbers of some rows of scales."""

    def stored_columns(self, columns: int) -> int:
        """How many values are stored in a row for so many scales."""

    def decode(self, found: np.ndarray, rows: range, columns: int) -> np.ndarray:
        """found: uint8, the bytes of `stored_rows(rows)`. Returns float32 [rows, columns]."""


@dataclass(frozen=True, slots=True)
class ZeroPoints:
    """Of compressed-tensors' integers, one for each scale: int8 in the scales' shape; or of `bits` bits, offset binary,
    packed down the rows of each matrix into words: int32 […, words, groups].

    scale_rows: of one matrix. Rows of scales and of words are counted over all matrices.
    """

    place: Place
    bits: int
    scale_rows: int

    @classmethod
    def of(cls, place: Place | None, bits: int, scale_rows: int) -> ZeroPoints | None:
        """None where they are all 0, and so not stored."""
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
    """Of unsigned 4-bit codes, packed along the rows from the low bits up: int32 [rows, scales / 8]."""

    place: Place

    def stored_rows(self, rows: range) -> range:
        return rows

    def stored_columns(self, columns: int) -> int:
        return columns // _NIBBLES

    def decode(self, found: np.ndarray, _rows: range, columns: int) -> np.ndarray:
        nibbles = np.stack([found & 15, found >> 4], axis=-1).reshape(-1, columns)
        # Kernels take codes as signed, half of their range below what is stored, and zeros with them.
        return nibbles.astype(np.float32) - np.float32(8)


@dataclass(frozen=True, slots=True)
class Biases:
    """Floats in the scales' shape."""

    place: Place

    def stored_rows(self, rows: range) -> range:
        return rows

    def stored_columns(self, columns: int) -> int:
        return columns

    def decode(self, found: np.ndarray, _rows: range, columns: int) -> np.ndarray:
        return as_float32(found, self.place.dtype).reshape(-1, columns)


def word_rows(scale_rows: int, bits: int) -> int:
    """Rows of words for the zero points of one matrix's `scale_rows`."""
    return -(-scale_rows * bits // WORD_BITS)
