"""Symmetric matrices as L D Lᵀ, in place, and what is solved with it: by blocks, so that BLAS does nearly all of it.

Every product sums over at most FACTOR_BLOCK numbers, and its shape depends on the matrix alone. BLAS takes so short a
sum in one go, in the order of the numbers, however many threads share the rows and columns of the product: a larger
sum, or a LAPACK factorization, is cut by the number of threads, and its last bits with it. What stays is that another
machine's BLAS may round otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from arrowquant_dist.kernels.compile import kernel

FACTOR_BLOCK = 128


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """L D Lᵀ of a symmetric matrix.

    lower: float32 [n, n], below its diagonal that of L, whose own is 1; the rest is not looked at. pivots: float32 [n],
    D. inverses: float32 [blocks, FACTOR_BLOCK, FACTOR_BLOCK], of L's blocks on the diagonal, of the last one as much
    as there is.
    """

    lower: np.ndarray
    pivots: np.ndarray
    inverses: np.ndarray

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """[start, stop) of each."""
        n = self.pivots.size
        return [(start, min(start + FACTOR_BLOCK, n)) for start in range(0, n, FACTOR_BLOCK)]

    def solve(self, columns: np.ndarray) -> None:
        """x of L D Lᵀ x = b. columns: float32 [n, any], b and then x."""
        for start, stop in self.blocks:
            part, inverse = columns[start:stop], self._inverse(start, stop)
            part[:] = inverse @ part
            columns[stop:] -= self.lower[stop:, start:stop] @ part
        columns /= self.pivots[:, None]
        for start, stop in reversed(self.blocks):
            part, inverse = columns[start:stop], self._inverse(start, stop)
            part[:] = inverse.T @ part
            columns[:start] -= self.lower[start:stop, :start].T @ part

    def _inverse(self, start: int, stop: int) -> np.ndarray:
        return self.inverses[start // FACTOR_BLOCK, : stop - start, : stop - start]


def add_product(left: np.ndarray, right: np.ndarray, out: np.ndarray) -> None:
    """out += left @ right, any shapes."""
    for start in range(0, right.shape[0], FACTOR_BLOCK):
        out += left[:, start : start + FACTOR_BLOCK] @ right[start : start + FACTOR_BLOCK]


def factor(matrix: np.ndarray, diagonal: np.ndarray, least: float) -> Factor | None:
    """matrix: float32 [n, n], symmetric: read below its diagonal, which becomes the factor's. The rest stays what it
    is, see `mirror`. diagonal: float32 [n], the matrix's own, which may differ from what stands there.

    None where a pivot is below `least` or not finite; what is below the diagonal is then meaningless.
    """
    n = diagonal.size
    found = Factor(
        matrix, diagonal.copy(), np.zeros((-(-n // FACTOR_BLOCK), FACTOR_BLOCK, FACTOR_BLOCK), np.float32)
    )
    scratch = np.empty((FACTOR_BLOCK, FACTOR_BLOCK))
    for start, stop in found.blocks:
        block, pivots = matrix[start:stop, start:stop], found.pivots[start:stop]
        inverse = found.inverses[start // FACTOR_BLOCK, : stop - start, : stop - start]
        if not factor_block(block, pivots, np.float64(least), scratch, inverse):
            return None
        with_pivots = matrix[stop:, start:stop] @ inverse.T
        np.divide(with_pivots, pivots, out=matrix[stop:, start:stop])
        for first in range(stop, n, FACTOR_BLOCK):
            last = min(first + FACTOR_BLOCK, n)
            right = matrix[first:last, start:stop].T
            tile = with_pivots[first - stop : last - stop] @ right
            matrix[first:last, first:last] -= np.tril(tile, -1)
            found.pivots[first:last] -= np.diagonal(tile)
            matrix[last:, first:last] -= with_pivots[last - stop :] @ right
    return found


@kernel
def factor_block(
    block: np.ndarray, pivots: np.ndarray, least: float, scratch: np.ndarray, inverse: np.ndarray
) -> bool:
    """One block on the diagonal, in float64.

    block: float32 [m, m], below its diagonal the matrix and then L; pivots: float32 [m], the diagonal and then D.
    scratch: float64 [≥ m, ≥ m]. inverse: float32 [m, m], becomes that of L. False where a pivot is below `least` or not
    finite; nothing of the block is then written.
    """
    m = pivots.size
    for i in range(m):
        for j in range(i):
            total = np.float64(block[i, j])
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
            block[i, j] = np.float32(scratch[i, j])
    _invert(scratch, inverse)
    return True


@kernel
def _invert(lower: np.ndarray, inverse: np.ndarray) -> None:
    """lower: float64 [≥ m, ≥ m], what is below the diagonal of a matrix whose own is 1. inverse: float32 [m, m]."""
    m = inverse.shape[0]
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
    """What is above the diagonal of [n, n] goes below it: a symmetric matrix is again what it was before `factor`."""
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
