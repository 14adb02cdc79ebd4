"""What `calibrate` writes about a layer's inputs, in the form that `gptq` gets: read when needed, matrix by matrix."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.errors import InvalidCheckpoint
from arrowquant_dist.methods.method import PartReader

if TYPE_CHECKING:
    from arrowquant_dist.kernels.factor import Factor

_NUMBER_NBYTES = 4
# The version of what `calibrate` writes, in its calibration.json. Version 1 did not say which weights it was made from.
STATISTICS_VERSION = 2
TILE = 256  # rows that are processed together
HESSIAN, CROSS, RESIDUAL = "hessian", "cross", "residual"
# The same for layers stored [in, out]: the first two are [in, in], the last, E[x̃ (r - r̃)ᵀ], is [in, out].
ROW_HESSIAN, ROW_CROSS, ROW_RESIDUAL = "row_hessian", "row_cross", "row_residual"
# E[g gᵀ] of an embedding, which is to its rows what the Hessian is to those of other layers (methods/sensitive.py).
SENSITIVITY = "sensitivity"
# Damping, as a fraction of the mean of the Hessian's diagonal: .01 is usual. A corrected target would follow the noise
# of few texts, so it is damped ten times as much (measured on MiniLM, 500 texts: embedding cosine .890 at 2 bits), and
# so are sensitivities, which are from some thousand tokens: errors of MiniLM's rows, measured by the sensitivities of
# other texts, are then 3 % smaller at int2, int3 and int4.
_DAMP, _LARGER_DAMP = 0.01, 0.1
_MOST_DAMP = 10.0


class Statistics:
    """The side input of `gptq`: what `calibrate` writes for a layer."""

    config_field = "hessians"
    finished_by = "calibration.json"
    format_version = STATISTICS_VERSION
    is_of_weights = True
    # in this order: an embedding with nothing else known, a layer that received no input, and a layer stored [in, out]
    # whose codes are to be entropy coded
    exempt = ("counts", "unseen", ROW_HESSIAN)

    def needed(self, spec: QuantSpec) -> tuple[str, ...]:
        """See SideInput.needed. With a step, statistics of layers stored [in, out] are of no use: their rows are not
        independent, so no sample of them shows what a step leads to. Embeddings are then for method `counted`."""
        return (HESSIAN,) if spec.step > 0.0 else (HESSIAN, ROW_HESSIAN, SENSITIVITY)

    def instead(self, spec: QuantSpec) -> QuantSpec:
        """See SideInput.instead."""
        return replace(spec, method="size" if spec.step > 0.0 else "mse")

    def shapes(self, layer_shape: tuple[int, ...], row_dims: int) -> Mapping[str, tuple[int, ...]]:
        """See SideInput.shapes. Fused experts [experts, out, in] have one matrix per expert."""
        columns, rows = math.prod(layer_shape[row_dims:]), layer_shape[row_dims - 1]
        matrices = layer_shape[: row_dims - 1]
        square, own = (*matrices, columns, columns), (*layer_shape[:row_dims], columns)
        row_square = (*matrices, rows, rows)
        found = {HESSIAN: square, CROSS: square, RESIDUAL: own, SENSITIVITY: square}
        return found | {ROW_HESSIAN: row_square, ROW_CROSS: row_square, ROW_RESIDUAL: own}

    def rows_together(self, layer_shape: tuple[int, ...], row_dims: int, parts: Collection[str], /) -> int:
        """See SideInput.rows_together."""
        return layer_shape[row_dims - 1] if ROW_HESSIAN in parts else 1

    def prepare(
        self, layer: str, layer_shape: tuple[int, ...], row_dims: int, read: PartReader, /
    ) -> LayerStatistics:
        """See SideInput.prepare."""
        return LayerStatistics(layer, layer_shape, row_dims, read)

    def work_nbytes(
        self, layer_shape: tuple[int, ...], row_dims: int, rows: int, parts: Collection[str], /
    ) -> int:
        """See SideInput.work_nbytes. The matrices of one expert, and what is made of a tile and a column of blocks."""
        from arrowquant_dist.kernels.factor import FACTOR_BLOCK

        columns = math.prod(layer_shape[row_dims:])
        if ROW_HESSIAN in parts:
            inputs = layer_shape[row_dims - 1]
            squares = 1 + (ROW_CROSS in parts)
            # bits, values, target and residual of the matrix; its codes twice, its scales and zero points
            whole = columns * (4 + (ROW_RESIDUAL in parts))
            return _NUMBER_NBYTES * inputs * (squares * inputs + 9 * TILE + 6 * FACTOR_BLOCK + whole)
        squares = sum(part in parts for part in (HESSIAN, CROSS, SENSITIVITY))
        given = min(rows, TILE) if RESIDUAL in parts else 0
        return _NUMBER_NBYTES * columns * (squares * columns + 9 * TILE + 6 * FACTOR_BLOCK + given)


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """The statistics of one matrix of weights, ready for rounding.

    layer: name of the layer, for errors. order: int64 [columns], the columns sorted by the Hessian's diagonal,
    ascending. factor: factorization of the damped Hessian in that order. correction: float32 [columns, columns], C - H;
    None if it is not known. is_seen: whether the matrix received any input.
    """

    layer: str
    order: np.ndarray
    factor: Factor
    correction: np.ndarray | None
    is_seen: bool


class LayerStatistics:
    """A layer's statistics, read when they are needed: one expert's matrices, and a tile's residuals, at a time.

    is_by_rows: whether the layer is stored [in, out], with a row for each input.
    """

    def __init__(self, layer: str, shape: tuple[int, ...], row_dims: int, read: PartReader) -> None:
        self._layer, self._read = layer, read
        self.columns = math.prod(shape[row_dims:])
        self.rows_each = shape[row_dims - 1]
        self.is_by_rows = HESSIAN not in read.parts and ROW_HESSIAN in read.parts
        self._inputs = self.rows_each if self.is_by_rows else self.columns
        self._at: int | None = None
        self._prepared: Prepared | None = None

    def of(self, matrix: int) -> Prepared:
        """matrix: index of the matrix in the layer; 0 unless the layer is of fused experts."""
        if self._prepared is None or self._at != matrix:
            self._prepared = None  # free it first: a worker's memory is counted for one of them
            self._prepared, self._at = self._prepare(matrix), matrix
        return self._prepared

    def residual(self, row: int, rows: int) -> np.ndarray | None:
        """float32 [rows, columns]: the residual part of the layer's rows from `row` on; None if the layer has none."""
        part = ROW_RESIDUAL if self.is_by_rows else RESIDUAL
        if part not in self._read.parts:
            return None
        found = self._finite(part, row * self.columns, (row + rows) * self.columns)
        return found.reshape(rows, self.columns)

    def unusable(self, what: str) -> InvalidCheckpoint:
        return InvalidCheckpoint(
            f"{what}; calibrate again, or choose another method for the layer with an override",
            layer=self._layer,
        )

    def _square(self, part: str, matrix: int) -> np.ndarray:
        n = self._inputs
        return self._finite(part, matrix * n * n, (matrix + 1) * n * n).reshape(n, n)

    def _finite(self, part: str, start: int, stop: int) -> np.ndarray:
        from arrowquant_dist.kernels.spans import first_non_finite

        found = self._read(part, start, stop)
        if first_non_finite(found.view("<i4")) >= 0:
            raise self.unusable(f"its {part} holds NaN or inf")
        return found

    def _prepare(self, matrix: int) -> Prepared:
        parts = (ROW_HESSIAN, ROW_CROSS) if self.is_by_rows else (HESSIAN, CROSS)
        is_of_inputs = parts[0] in self._read.parts
        hessian = self._square(parts[0] if is_of_inputs else SENSITIVITY, matrix)
        diagonal = hessian.diagonal().copy()
        if diagonal.min() < 0:
            raise self.unusable("its hessian has a negative number on its diagonal")
        correction = self._square(parts[1], matrix) if parts[1] in self._read.parts else None
        damp = _DAMP if correction is None and is_of_inputs else _LARGER_DAMP
        if correction is not None:
            correction -= hessian
        order, found = factored(hessian, damp)
        if found is None:
            raise self.unusable(
                f"its hessian is not positive definite, even with {_MOST_DAMP:g} of its mean diagonal added"
            )
        return Prepared(self._layer, order, found, correction, is_seen=bool(diagonal.any()))


def factored(hessian: np.ndarray, damp: float) -> tuple[np.ndarray, Factor | None]:
    """(order, factor): the columns of a Hessian sorted by its diagonal, ascending, and its factorization in that order.

    hessian: overwritten. damp: λ as a fraction of the mean of the diagonal, which it is added to; ten times as much is
    tried until the factorization succeeds. factor is None if the Hessian is not positive definite even then.

    Each pivot of a sum of squares plus λI is at least λ: a pivot below λ / 2 shows that the numbers are too inexact for
    so little damping.
    """
    from arrowquant_dist.kernels.factor import factor, mirror, reorder

    diagonal = hessian.diagonal().copy()
    order = np.argsort(diagonal, kind="stable")
    reorder(hessian, order, np.empty(order.size, np.float32), np.empty(order.size, np.bool_))
    diagonal = diagonal[order]
    mean = float(diagonal.mean(dtype=np.float64))
    if mean == 0.0:
        # an expert that received no token: nothing tells which errors matter, so each code is the nearest
        mean, hessian[:] = 1.0, 0.0
    mirror(hessian)
    while damp <= _MOST_DAMP * 1.0001:
        added = np.float32(damp * mean)
        found = factor(hessian, diagonal + added, float(added) / 2)
        if found is not None:
            return order, found
        mirror(hessian)
        damp *= 10.0
    return order, None
