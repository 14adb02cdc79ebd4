"""Rows of weights on their way to codes by gptq: corrected by the layer's statistics, then rounded column by column.

gptq.py describes what is computed, and chooses how a target is rounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.methods.method import Given
from arrowquant_dist.methods.statistics import TILE, LayerStatistics, Prepared

# The fraction of the correction that is applied: statistics are those of some texts, and the whole correction would
# follow their noise. For MiniLM at 8.6 MB, by 400 texts, the embedding cosine is .9867 with this fraction and .9857
# with all of it; on texts of another kind .9849 and .9837.
_CORRECTED = np.float32(0.75)


class Rounds(Protocol):
    """How the columns of one target become codes, one after the other."""

    def round(
        self, prepared: Prepared, start: int, errors: np.ndarray, carried: np.ndarray, codes: np.ndarray
    ) -> None:
        """Rounds some columns: those from `start` on in the order of `prepared`. errors, carried, codes:
        [columns, rows], see kernels/gptq.py::round_columns."""


class Rounding(Rounds, Protocol):
    """A Rounds with what its codes are decoded with. scales: float32 [rows, groups]. zero_points: float32
    [rows, groups], or [rows, 0] if symmetric. group: number of columns that share a scale."""

    @property
    def scales(self) -> np.ndarray: ...

    @property
    def zero_points(self) -> np.ndarray: ...

    @property
    def group(self) -> int: ...


class TargetPiece(Protocol):
    """Rows of one matrix whose scales are chosen together."""

    def target(self) -> np.ndarray:
        """float32 [rows, columns], read-only"""

    def quantize(self, rounding: Rounding, spec: QuantSpec, codes: np.ndarray, sums: np.ndarray) -> None:
        """Rounds the target and packs its codes.

        rounding: chosen for the target. codes: uint8 [rows, row bytes], written. sums: float64 [4], error sums as in
        kernels/quantize.py, which are added to it."""


def tiles_of(bits: np.ndarray, given: Given) -> Iterator[tuple[slice, Prepared, TargetPiece]]:
    """Yields tiles of rows: which rows they are, the statistics of their matrix, and the tile.

    bits: finite source bits [rows, columns]."""
    statistics: LayerStatistics = given.side
    start, each = given.row_start, statistics.rows_each
    for first, stop in _tiles(start, start + bits.shape[0], each):
        own = slice(first - start, stop - start)
        prepared = statistics.of(first // each)
        residual = statistics.residual(first, stop - first) if prepared.is_seen else None
        yield own, prepared, TargetTile(bits[own], prepared, residual)


def _tiles(start: int, stop: int, rows_each: int) -> Iterator[tuple[int, int]]:
    """Yields [first, stop) of rows of one matrix that are processed together. The result for a row does not depend on
    the other rows, see kernels/multiply.py."""
    while start < stop:
        end = min(stop, start + TILE, (start // rows_each + 1) * rows_each)
        yield start, end
        start = end


class TargetTile:
    """A TargetPiece: rows of weights, corrected, that may be rounded more than once. Arrays are [columns, rows]."""

    def __init__(self, bits: np.ndarray, prepared: Prepared, residual: np.ndarray | None) -> None:
        """bits: source bits [rows, columns], finite. residual: D of these rows, float32 [rows, columns]; may be
        overwritten."""
        from arrowquant_dist.kernels.gptq import load_columns
        from arrowquant_dist.kernels.multiply import scratch_size

        self._bits, self._prepared = bits, prepared
        self._rows, columns = bits.shape
        self._values = np.empty((columns, self._rows), np.float32)
        self._scratch = np.empty(scratch_size(self._rows), np.float32)
        load_columns(bits, self._values)
        if prepared.is_seen:
            self._correct(residual)

    def _correct(self, residual: np.ndarray | None) -> None:
        """Turns the values into their target."""
        from arrowquant_dist.kernels.gptq import load_columns

        prepared = self._prepared
        if prepared.correction is None and residual is None:
            return
        moved = np.zeros_like(self._values)
        if residual is not None:
            residual.flags.writeable = False
            load_columns(residual.view("<i4"), moved)
        if prepared.correction is not None:
            self._add_turned(prepared.correction, 0, self._values, moved)
        moved = moved[prepared.order] * _CORRECTED
        prepared.factor.solve(moved)
        self._values[prepared.order] += moved

    def target(self) -> np.ndarray:
        """See TargetPiece.target."""
        from arrowquant_dist.kernels.gptq import rows_of

        found = np.empty(self._values.shape[::-1], np.float32)
        rows_of(self._values, found)
        found.flags.writeable = False  # as all inputs of kernels are: one compilation serves all
        return found

    def quantize(self, rounding: Rounding, spec: QuantSpec, codes: np.ndarray, sums: np.ndarray) -> None:
        """See TargetPiece.quantize."""
        from arrowquant_dist.kernels.gptq import pack_and_measure

        scratch = np.empty((min(TILE, self._rows), self._bits.shape[1]), np.uint8)
        scales, zero_points, columns = rounding.scales, rounding.zero_points, self.rounded(rounding)
        pack_and_measure(
            self._bits, rounding.group, scales, zero_points, columns, spec.bits, scratch, codes, sums
        )

    def rounded(self, rounding: Rounds) -> np.ndarray:
        """uint8 [columns, rows]: the codes, signed ones in two's complement."""
        factor, order = self._prepared.factor, self._prepared.order
        errors, carried = self._values[order], np.zeros_like(self._values)
        codes = np.empty(errors.shape, np.uint8)
        for start, stop in reversed(factor.blocks):
            own = slice(start, stop)
            rounding.round(self._prepared, start, errors[own], carried[own], codes[own])
            self._add_turned(factor.lower, start, errors[own], carried[:start])
        found = np.empty_like(codes)
        found[order] = codes
        return found

    def _add_turned(self, left: np.ndarray, first: int, right: np.ndarray, out: np.ndarray) -> None:
        """out += leftᵀ @ right, with the rows of `left` from `first` on."""
        from arrowquant_dist.kernels.multiply import add_product

        add_product(left, 0, first, True, np.float32(1.0), right, out, 0, self._rows, self._scratch)  # noqa: FBT003
