"""Factorization of symmetric matrices as L D Lᵀ, in place, and solving with it. It works by blocks, so that nearly all
of the work is matrix products, in an order that only depends on the matrix's size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from arrowquant_dist.kernels.compile import kernel
from arrowquant_dist.kernels.multiply import add_product, scratch_size

FACTOR_BLOCK = 128
_PLUS, _MINUS = np.float32(1.0), np.float32(-1.0)


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """L D Lᵀ of a symmetric matrix.

    lower: float32 [n, n], L below its diagonal (L has ones on the diagonal); the rest is not used. pivots: float32 [n],
    D. inverses: float32 [blocks, FACTOR_BLOCK, FACTOR_BLOCK], the inverses of L's blocks on the diagonal; the last
    block may be smaller.
    """

    lower: np.ndarray
    pivots: np.ndarray
    inverses: np.ndarray

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """(start, stop) of each block."""
        n = self.pivots.size
        return [(start, min(start + FACTOR_BLOCK, n)) for start in range(0, n, FACTOR_BLOCK)]

    def solve(self, columns: np.ndarray) -> None:
        """Solves L D Lᵀ x = b. columns: float32 [n, any], b, which is replaced by x."""
        width = columns.shape[1]
        part, scratch = np.empty((FACTOR_BLOCK, width), np.float32), np.empty(scratch_size(width), np.float32)
        for start, stop in self.blocks:
            self._multiply(start, columns[start:stop], part, scratch, is_turned=False)
            below = columns[stop:]
            add_product(self.lower, stop, start, False, _MINUS, columns[start:stop], below, 0, width, scratch)  # noqa: FBT003
        with np.errstate(over="ignore", invalid="ignore"):  # callers check whether the result is finite
            columns /= self.pivots[:, None]
        for start, stop in reversed(self.blocks):
            self._multiply(start, columns[start:stop], part, scratch, is_turned=True)
            above = columns[:start]
            add_product(self.lower, 0, start, True, _MINUS, columns[start:stop], above, 0, width, scratch)  # noqa: FBT003

    def _multiply(
        self, start: int, columns: np.ndarray, part: np.ndarray, scratch: np.ndarray, *, is_turned: bool
    ) -> None:
        """Multiplies a block of columns by the inverse of L's block, or by its transpose."""
        right = part[: len(columns)]
        right[:] = columns
        columns[:] = 0.0
        inverse = self.inverses[start // FACTOR_BLOCK]
        add_product(inverse, 0, 0, is_turned, _PLUS, right, columns, 0, columns.shape[1], scratch)


def factor(matrix: np.ndarray, diagonal: np.ndarray, least: float) -> Factor | None:
    """Factorizes a symmetric matrix.

    matrix: float32 [n, n], of which the part below the diagonal is read and replaced by L. The rest is not modified,
    see `mirror`. diagonal: float32 [n], used instead of the matrix's own diagonal. least: smallest pivot accepted.

    Returns None if a pivot is below `least` or not finite; the part below the diagonal is then meaningless. Memory:
    three columns of blocks.
    """
    n, size = diagonal.size, (-(-diagonal.size // FACTOR_BLOCK), FACTOR_BLOCK, FACTOR_BLOCK)
    found = Factor(matrix, diagonal.copy(), np.zeros(size, np.float32))
    square, scratch = np.empty(size[1:]), np.empty(scratch_size(FACTOR_BLOCK), np.float32)
    for start, stop in found.blocks:
        inverse, pivots = found.inverses[start // FACTOR_BLOCK], found.pivots[start:stop]
        if not factor_block(matrix, start, pivots, float(least), square, inverse):
            return None
        right = np.ascontiguousarray(inverse[: stop - start, : stop - start].T)
        with_pivots = np.zeros((n - stop, stop - start), np.float32)
        add_product(matrix, stop, start, False, _PLUS, right, with_pivots, 0, stop - start, scratch)  # noqa: FBT003
        np.divide(with_pivots, pivots, out=matrix[stop:, start:stop])
        _take_from_rest(found, start, stop, with_pivots, scratch)
    return found


def _take_from_rest(
    found: Factor, start: int, stop: int, with_pivots: np.ndarray, scratch: np.ndarray
) -> None:
    """Subtracts the contribution of columns [start, stop) of L from the part of the matrix to their right. with_pivots:
    float32, these columns below `stop`, times D."""
    matrix, n = found.lower, found.pivots.size
    for first in range(stop, n, FACTOR_BLOCK):
        last = min(first + FACTOR_BLOCK, n)
        right = np.ascontiguousarray(matrix[first:last, start:stop].T)
        own = np.zeros((last - first, last - first), np.float32)
        own_left = with_pivots[first - stop : last - stop]
        add_product(own_left, 0, 0, False, _PLUS, right, own, 0, last - first, scratch)  # noqa: FBT003
        matrix[first:last, first:last] -= np.tril(own, -1)
        found.pivots[first:last] -= np.diagonal(own)
        left, out = with_pivots[last - stop :], matrix[last:]
        add_product(left, 0, 0, False, _MINUS, right, out, first, last - first, scratch)  # noqa: FBT003


@kernel
def factor_block(
    matrix: np.ndarray,
    start: int,
    pivots: np.ndarray,
    least: float,
    scratch: np.ndarray,
    inverse: np.ndarray,
) -> bool:
    """Factorizes one block on the diagonal, in float64.

    matrix: float32 [n, n], whose block [m, m] begins at [start, start]; below the diagonal it is replaced by L.
    pivots: float32 [m], the diagonal, which is replaced by D. scratch: float64 [≥ m, ≥ m]. inverse: float32
    [≥ m, ≥ m], whose part [m, m] becomes the inverse of L. Returns False if a pivot is below `least` or not finite;
    nothing of the block is then written.
    """
    m = pivots.size
    for i in range(m):
        for j in range(i):
            total = np.float64(matrix[start + i, start + j])
            for k in range(j):
                total -= scratch[i, k] * scratch[j, k] * scratch[k, k]
            scratch[i, j] = total / scratch[j, j]
        pivot = np.float64(pivots[i])
        for k in range(i):
            pivot -= scratch[i, k] * scratch[i, k] * scratch[k, k]
        if not (pivot >= least and pivot < np.inf):
            return False
        scratch[i, i] = pivot
    for i in range(m):
        pivots[i] = np.float32(scratch[i, i])
        for j in range(i):
            matrix[start + i, start + j] = np.float32(scratch[i, j])
    _invert(scratch, m, inverse)
    return True


@kernel
def _invert(lower: np.ndarray, m: int, inverse: np.ndarray) -> None:
    """Inverts a matrix with ones on its diagonal. lower: float64 [≥ m, ≥ m], its part below the diagonal. inverse:
    float32 [≥ m, ≥ m], filled."""
    for j in range(m):
        for i in range(m):
            inverse[i, j] = np.float32(0.0)
        inverse[j, j] = np.float32(1.0)
        for i in range(j + 1, m):
            total = 0.0
            for k in range(j, i):
                total -= lower[i, k] * np.float64(inverse[k, j])
            inverse[i, j] = np.float32(total)


@kernel
def mirror(matrix: np.ndarray) -> None:
    """Copies the part above the diagonal of [n, n] below it: restores a symmetric matrix to what it was before
    `factor`."""
    for i in range(matrix.shape[0]):
        for j in range(i):
            matrix[i, j] = matrix[j, i]


@kernel
def _copy(values: np.ndarray, out: np.ndarray) -> None:
    for j in range(values.size):
        out[j] = values[j]


@kernel
def reorder(matrix: np.ndarray, order: np.ndarray, row: np.ndarray, moved: np.ndarray) -> None:
    """matrix[i, j] becomes matrix[order[i], order[j]], in place. row: scratch [n]; moved: scratch, bool [n]."""
    n = order.size
    for i in range(n):
        _copy(matrix[i], row)
        for j in range(n):
            matrix[i, j] = row[order[j]]
        moved[i] = False
    for first in range(n):
        if moved[first]:
            continue
        _copy(matrix[first], row)
        at = first
        while order[at] != first:
            _copy(matrix[order[at]], matrix[at])
            moved[at] = True
            at = order[at]
        _copy(row, matrix[at])
        moved[at] = True
