"""Method `size` for an embedding whose rows were counted: how often a calibration's texts read each of them.

In most vocabularies token ids are sorted by descending frequency, but not throughout: the first 2,000 ids of BERT are
unused ones and single characters, a few of which occur in every text and most in none. So here a row's rank, on which
its step in method `size` depends, is derived from counts. A row that was read c times, while its neighbours were read n
times on average, is assumed to be read n (c + a) / (n + a) times: with many texts this is its own count, with few its
neighbours' (the estimate with a gamma prior of mean n and shape a = _SHAPE).

With only MiniLM's embedding quantized, by the counts of 1,600 texts and with an exponent of .2, the embedding cosine
falls short of 1 by .0048 at 2.45 bits of entropy a value (.0069 with ranks by id), and by .022 at 1.45 bits (.034); on
quotations, which are unlike these texts, by .0047 (.0064) and .023 (.031). A shape of .3 and an exponent of .15 leave
.0050 and .022, on quotations .0050 and .024; a mean of two parts a row's own count and one part its neighbours' leaves
.023 and .024 at 1.45 bits; means over 512 or 2,048 neighbours are no better than over 128.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.methods.method import Found, Given, PartReader
from arrowquant_dist.methods.sensitive import Sensitivity, in_sensitive_steps, sensitivity_nbytes
from arrowquant_dist.methods.size import exponential, in_steps, logarithm
from arrowquant_dist.methods.statistics import SENSITIVITY, STATISTICS_VERSION

COUNTS = "counts"
_SHAPE = 0.6
_NEIGHBOURS = 64  # on either side
_RAREST = 1 / 64  # of the mean count: rows that are read more rarely get no larger steps
_ROW_NBYTES = 96  # per row: the float64 arrays that exist at the same time


class Counts:
    """The side input of `counted`: what `calibrate` writes for an embedding."""

    config_field = "hessians"
    finished_by = "calibration.json"
    format_version = STATISTICS_VERSION
    is_of_weights = True
    exempt = ("unseen", "hessian", "row_hessian")

    def needed(self, spec: QuantSpec) -> tuple[str, ...]:  # noqa: ARG002 - the same for all
        """See SideInput.needed."""
        return (COUNTS,)

    def instead(self, spec: QuantSpec) -> QuantSpec:
        """See SideInput.instead."""
        return replace(spec, method="size")

    def shapes(self, layer_shape: tuple[int, ...], row_dims: int) -> Mapping[str, tuple[int, ...]]:
        """See SideInput.shapes."""
        columns = math.prod(layer_shape[row_dims:])
        return {COUNTS: (math.prod(layer_shape[:row_dims]),), SENSITIVITY: (columns, columns)}

    def rows_together(self, _layer_shape: tuple[int, ...], _row_dims: int, _parts: Collection[str], /) -> int:
        """See SideInput.rows_together."""
        return 1

    def prepare(
        self, layer: str, layer_shape: tuple[int, ...], row_dims: int, read: PartReader, /
    ) -> CountedRows:
        """See SideInput.prepare."""
        rows = CountedRows.of(read(COUNTS, 0, math.prod(layer_shape[:row_dims])))
        if SENSITIVITY not in read.parts:
            return rows
        n = math.prod(layer_shape[row_dims:])
        return rows.with_sensitivity(read(SENSITIVITY, 0, n * n).reshape(n, n), layer)

    def work_nbytes(
        self, layer_shape: tuple[int, ...], row_dims: int, _rows: int, parts: Collection[str], /
    ) -> int:
        """See SideInput.work_nbytes."""
        columns = math.prod(layer_shape[row_dims:]) if SENSITIVITY in parts else 0
        return _ROW_NBYTES * math.prod(layer_shape[:row_dims]) + sensitivity_nbytes(columns)


@dataclass(frozen=True, slots=True, eq=False)
class CountedRows:
    """What was learned about an embedding's rows.

    ranks: float64 [rows], logarithms of ranks. Their mean is that of the logarithms of 1, 2, …, rows, so that a layer
    takes about as many bytes as by method `size` with the same step. sensitivity: shared by all rows; None if it is not
    known."""

    ranks: np.ndarray
    sensitivity: Sensitivity | None = None

    @classmethod
    def of(cls, counts: np.ndarray) -> CountedRows:
        """counts: float32 [rows]; NaN and negative counts are taken as 0."""
        own = np.where(counts > 0.0, counts, 0.0).astype(np.float64)
        rows = own.size
        total = float(own.sum())
        by_id = logarithm(np.arange(1, rows + 1, dtype=np.float64))
        if total == 0.0:
            return cls(by_id)
        near = _neighbours(own)
        found = near * (own + _SHAPE) / np.maximum(near + _SHAPE, 1e-30)
        seldom = -logarithm(np.maximum(found, _RAREST * total / rows))
        return cls(seldom + (math.fsum(by_id) - math.fsum(seldom)) / rows)

    def with_sensitivity(self, squares: np.ndarray, layer: str) -> CountedRows:
        """squares: float32 [columns, columns], E[g gᵀ] (methods/sensitive.py); overwritten. Raises InvalidCheckpoint,
        naming the layer, if it is not such a matrix."""
        return replace(self, sensitivity=Sensitivity.of(squares, layer))

    def steps(self, spec: QuantSpec, first: int, rows: int) -> np.ndarray:
        """float64 [rows]: as in size.relative_steps, by the ranks of these rows."""
        return spec.step * exponential(spec.row_exponent * self.ranks[first : first + rows])


class Counted:
    """`counted` by row."""

    name = "counted"
    side_input = Counts()

    def quantize(self, bits: np.ndarray, spec: QuantSpec, codes: np.ndarray, given: Given, /) -> Found | None:
        """See Method.quantize."""
        counted: CountedRows = given.side
        steps = counted.steps(spec, given.row_start, len(bits))
        if counted.sensitivity is None:
            return in_steps(bits, spec, codes, steps)
        return in_sensitive_steps(bits, spec, codes, steps, counted.sensitivity)


def _neighbours(counts: np.ndarray) -> np.ndarray:
    """float64 [rows]: the mean over each row and its neighbours. The sums are of whole numbers and therefore exact."""
    sums = np.concatenate([[0.0], np.cumsum(counts)])
    rows = np.arange(counts.size)
    low, high = np.maximum(rows - _NEIGHBOURS, 0), np.minimum(rows + _NEIGHBOURS + 1, counts.size)
    found: np.ndarray = (sums[high] - sums[low]) / (high - low)
    return found
