"""Codes that take few bits once they are compressed: a step a row, in proportion to the row's size.

Stored bytes are what counts. Codes are Huffman coded on disk, so at equal bytes coarse steps in a wide type beat narrow
codes with fine scales: of MiniLM 5.5 MB as int2 in groups of 128 leave an embedding cosine of .51, and by this method
.74 or more. Equal relative steps for all layers but embeddings are best, where nothing is known of the inputs.

Rows of an embedding differ in how often they are read. Ids fall by frequency in nearly all vocabularies, so the step of
row i grows as (i + 1)^row_exponent: rows of rank i occur in proportion to 1/i, and .15 (the square root of a frequency
to the power .3) was best on MiniLM; 0 costs .03 of cosine at 5.5 MB.
"""

from __future__ import annotations

import numpy as np

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.methods.groups import code_limits, error_sums
from arrowquant_dist.methods.method import Found, Given

# Half of √8 / ln 2 / 2, by which code lengths grow where a step is the standard deviation.
_LENGTHS_SLOPE = 1.02
_MOST_SHIFT = 0.5  # of a step: boundaries are never moved to the next code
_NO_ZERO_POINTS = np.empty(0, np.float32)


class Size:
    """`size` by row; the arithmetic is in kernels/steps.py."""

    name = "size"
    side_input = None

    def quantize(self, bits: np.ndarray, spec: QuantSpec, codes: np.ndarray, given: Given, /) -> Found | None:
        """See Method.quantize."""
        return in_steps(bits, spec, codes, relative_steps(spec, given.row_start, len(bits)))


def in_steps(bits: np.ndarray, spec: QuantSpec, codes: np.ndarray, steps: np.ndarray) -> Found | None:
    """As Method.quantize. steps: float64 [rows], as multiples of rows' root mean squares."""
    from arrowquant_dist.kernels.steps import quantize_steps

    rows, columns = bits.shape
    shifts = outward_shifts(spec.rate, steps)
    scales, sums = np.empty(rows, np.float32), np.zeros(4)
    scratch, q = np.empty(columns, np.uint8), np.empty(columns, np.float32)
    filled = (codes, scales, scratch, sums, q)
    if quantize_steps(bits, *code_limits(spec), spec.bits, steps, shifts, *filled) >= 0:
        return None
    return Found(scales, _NO_ZERO_POINTS, error_sums(bits.size, sums))


def outward_shifts(rate: float, steps: np.ndarray) -> np.ndarray:
    """float32, as many as `steps`: by how much of a step boundaries between codes lie further from zero than their
    middle. rate: of the spec. steps: multiples of a root mean square, divided by what an error counts there where that
    is not 1."""
    found: np.ndarray = np.minimum(_LENGTHS_SLOPE * rate * steps, _MOST_SHIFT).astype(np.float32)
    return found


def relative_steps(spec: QuantSpec, first: int, rows: int) -> np.ndarray:
    """float64 [rows]: the steps of a layer's rows from `first` on, as multiples of their root mean squares:
    step · (i + 1)^row_exponent, at most a tenth beside it."""
    if spec.row_exponent == 0.0:
        return np.full(rows, spec.step)
    ranks = np.arange(first + 1, first + rows + 1, dtype=np.float64)
    return spec.step * exponential(spec.row_exponent * logarithm(ranks))


def logarithm(values: np.ndarray) -> np.ndarray:
    """log2, straight between powers of two: made of additions and products alone, as exponential is, so that they are
    the same numbers on every machine. values: float64, above 0."""
    mantissa, power = np.frexp(values)
    found: np.ndarray = (power - 1) + (2.0 * mantissa - 1.0)
    return found


def exponential(values: np.ndarray) -> np.ndarray:
    """exp2, straight between whole numbers."""
    whole = np.floor(values)
    found: np.ndarray = np.ldexp(1.0 + (values - whole), whole.astype(np.int32))
    return found
