"""Codes that take few bits when compressed: one step per row, in proportion to the row's root mean square.

Stored bytes are what counts. Codes are Huffman coded on disk, so at equal bytes coarse steps in a wide type beat narrow
codes with fine scales: MiniLM in 5.5 MB keeps an embedding cosine of .51 as int2 in groups of 128, and of .74 or more
by this method. If nothing is known about the inputs, equal relative steps for all layers but embeddings are best.

Rows of an embedding differ in how often they are read. Nearly all vocabularies are sorted by descending frequency, so
the step of row i grows as (i + 1)^row_exponent: the row of rank i occurs in proportion to 1/i, and .15 (the square root
of the frequency to the power .3) was best on MiniLM; 0 costs .03 of cosine at 5.5 MB.
"""

from __future__ import annotations

import numpy as np

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.methods.groups import code_limits, error_sums
from arrowquant_dist.methods.method import Found, Given

# Half of √8 / ln 2 / 2, the bits by which code lengths grow from code to code if a step is the standard deviation.
_LENGTHS_SLOPE = 1.02
_MOST_SHIFT = 0.5  # of a step: boundaries are never moved beyond the next code
_NO_ZERO_POINTS = np.empty(0, np.float32)


class Size:
    """`size` by row; the arithmetic is in kernels/steps.py."""

    name = "size"
    side_input = None

    def quantize(self, bits: np.ndarray, spec: QuantSpec, codes: np.ndarray, given: Given, /) -> Found | None:
        """See Method.quantize."""
        return in_steps(bits, spec, codes, relative_steps(spec, given.row_start, len(bits)))


def in_steps(bits: np.ndarray, spec: QuantSpec, codes: np.ndarray, steps: np.ndarray) -> Found | None:
    """Like Method.quantize, with given steps. steps: float64 [rows], as multiples of each row's root mean square."""
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
    """float32, as many as `steps`: how much further from zero than midway between two codes their boundary lies, as a
    fraction of the step. rate: that of the spec. steps: multiples of a root mean square, divided by the weight of an
    error there unless that is 1."""
    found: np.ndarray = np.minimum(_LENGTHS_SLOPE * rate * steps, _MOST_SHIFT).astype(np.float32)
    return found


def relative_steps(spec: QuantSpec, first: int, rows: int) -> np.ndarray:
    """float64 [rows]: the steps of a layer's rows from `first` on, as multiples of their root mean squares:
    step · (i + 1)^row_exponent, to within a tenth."""
    if spec.row_exponent == 0.0:
        return np.full(rows, spec.step)
    ranks = np.arange(first + 1, first + rows + 1, dtype=np.float64)
    return spec.step * exponential(spec.row_exponent * logarithm(ranks))


def logarithm(values: np.ndarray) -> np.ndarray:
    """log2, interpolated linearly between powers of two. Like exponential, it uses only additions and multiplications,
    so that the results are the same numbers on every machine. values: float64, above 0."""
    mantissa, power = np.frexp(values)
    found: np.ndarray = (power - 1) + (2.0 * mantissa - 1.0)
    return found


def exponential(values: np.ndarray) -> np.ndarray:
    """exp2, interpolated linearly between whole numbers."""
    whole = np.floor(values)
    found: np.ndarray = np.ldexp(1.0 + (values - whole), whole.astype(np.int32))
    return found
