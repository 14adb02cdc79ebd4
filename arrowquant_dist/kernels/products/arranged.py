"""Arranges one input in the order in which vectors of packed codes are multiplied with it; vectors.py describes how,
and why inputs are divided.

A vector holds eight words of codes side by side. Code k of each word is multiplied with an input, so these eight inputs
have to be side by side as well.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from arrowquant_dist.kernels.compile import kernel
from arrowquant_dist.kernels.numba_private import has_pointers, is_interpreted

LANES = 8  # words in a vector
NBYTES = 32  # size of a vector of codes
PLACES = 23  # bits of a float32 below its exponent
AT_ONCE = has_pointers() and not is_interpreted()

_LEAST = np.float32(2.0**-80)  # of the largest input: what others lose below 2^-126 is negligible beside it


@kernel
def codes_a_vector(width: int) -> int:
    return NBYTES * 8 // width


@kernel
def _codes_a_word(width: int) -> int:
    return 1 if width == 8 else 32 // width  # bytes are widened in place


@kernel
def _placed(width: int) -> int:
    """Number of codes of a word that are masked before the word is shifted."""
    return PLACES // width


@cache
def taken(width: int, group: int, columns: int) -> tuple[int, int]:
    """(number of a row's columns, from the first on, that vectors process; number of steps). Vectors hold whole groups.

    A step is a group, or a vector if it contains several groups. (0, 0) if vectors process none: for codes of 3 bits,
    and for groups that are neither several whole vectors nor a half or a quarter of one.
    """
    if not AT_ONCE or width == 3:
        return 0, 0
    vector = NBYTES * 8 // width
    if group >= columns:
        whole = columns // vector * vector
        return whole, min(1, whole)
    if group % vector == 0:
        return columns // group * group, columns // group
    if width < 8 and (group * 2 == vector or group * 4 == vector):
        return columns // vector * vector, columns // vector
    return 0, 0


@kernel
def fits_zero_points(width: int, zero_points: np.ndarray) -> bool:
    """Whether no zero point is larger than the codes' range. zero_points: float32 [rows, groups]."""
    most = np.float32(1 << width)
    fits = True
    for i in range(zero_points.shape[0]):
        for k in range(zero_points.shape[1]):
            fits &= abs(zero_points[i, k]) <= most
    return fits


@kernel
def _bears_division(values: np.ndarray) -> bool:
    """Whether values can be divided exactly: they are finite and not all tiny."""
    largest = np.float32(0)
    for j in range(values.size):
        size = abs(values[j])
        if not size < np.inf:
            return False
        largest = max(largest, size)
    return bool(largest == 0 or largest >= _LEAST)


@kernel
def _arrange(values: np.ndarray, width: int, arranged: np.ndarray) -> None:
    each, placed = _codes_a_word(width), _placed(width)
    for k in range(each):
        factor = np.float32(1) / np.float32(1 << (k % placed * width)) if each > 1 else np.float32(1)
        for start in range(0, arranged.size, LANES * each):
            for lane in range(LANES):
                arranged[start + k * LANES + lane] = values[start + lane * each + k] * factor


@kernel
def _add_up_lanes(values: np.ndarray, width: int, sums: np.ndarray) -> None:
    each = _codes_a_word(width)
    step = values.size // sums.shape[0]
    for n in range(sums.shape[0]):
        for lane in range(LANES):
            total = np.float64(0)
            for start in range(n * step + lane * each, (n + 1) * step, LANES * each):
                for j in range(start, start + each):
                    total += values[j]
            sums[n, lane] = np.float32(total)


@kernel
def arrange(
    values: np.ndarray, width: int, zero_points: np.ndarray, arranged: np.ndarray, sums: np.ndarray
) -> bool:
    """Arranges inputs. Returns False, with nothing written, if they cannot be divided exactly, because some are not
    finite or all are tiny.

    values: float32 [≥ columns]. zero_points: float32 [rows, groups], or [rows, 0]. arranged: float32 [columns],
    receives the inputs in the order of vectors. sums: float32 [steps, LANES], receives the sum of the inputs of each
    lane in a step; 0 if there are no zero points. Columns and steps are those of `taken`.
    """
    columns = arranged.size
    if not _bears_division(values[:columns]):
        return False
    _arrange(values, width, arranged)
    if zero_points.shape[1] > 0:
        _add_up_lanes(values[:columns], width, sums)
    else:
        sums[:] = 0
    return True


_NOTHING = np.empty(0, np.float32), np.empty((0, LANES), np.float32)


def arranged_input(
    values: np.ndarray, width: int, group: int, zero_points: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`arranged` and `sums` of `arrange`; both empty if vectors process nothing. values: float32 [columns]."""
    columns, steps = taken(width, group, values.size)
    if not columns:
        return _NOTHING
    made = np.empty(columns, np.float32), np.empty((steps, LANES), np.float32)
    return made if arrange(values, width, zero_points, *made) else _NOTHING
