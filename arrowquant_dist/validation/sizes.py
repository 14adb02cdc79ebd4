"""What compression could be and is, and how the weights' cosines are spread."""

from __future__ import annotations

import math
from collections.abc import Sequence

from arrowquant_dist.config import BITS
from arrowquant_dist.reduce.figures import ReportFigures
from arrowquant_dist.reduce.ratios import ratio
from arrowquant_dist.report.layer_rows import LayerRow
from arrowquant_dist.report.pictures.axes import round_step
from arrowquant_dist.validation.figures import Bin, Compression

_HALF_BITS = 16
_ABOUT_BINS = 6
_MOST_DIGITS = 9


def compression_of(report: ReportFigures, rows: Sequence[LayerRow]) -> Compression:
    totals = report.totals
    quantized = [row for row in rows if row.is_quantized]
    halves = sum(_HALF_BITS * row.params for row in quantized)
    code_bits = sum(_bits(row) * row.params for row in quantized)
    theoretical = ratio(halves, code_bits)
    actual = totals.compression_vs_fp16
    scales = totals.scales_nbytes + totals.zero_points_nbytes
    return Compression(
        theoretical=theoretical,
        uncompressed=ratio(totals.fp16_nbytes, totals.data_nbytes + scales),
        actual=actual,
        efficiency=ratio(actual, theoretical) if actual is not None and theoretical is not None else None,
        scales_nbytes=scales,
        kept_nbytes=sum(row.stored_nbytes for row in rows if not row.is_quantized),
        framing_nbytes=totals.parts_nbytes - totals.stored_nbytes,
        parts_nbytes=totals.parts_nbytes,
    )


def _bits(row: LayerRow) -> int:
    """Of a code; of a layer whose blocks differ the most of them."""
    return max(BITS[kind] for kind in row.quant_type.split("+") if kind in BITS)


def cosine_bins(rows: Sequence[LayerRow]) -> tuple[Bin, ...]:
    """About six bins of a round width, from the least cosine there is to the highest; the highest first, empty ones
    left out. None where no layer has a cosine."""
    cosines = [
        row.cosine for row in rows if row.is_quantized and not row.keeps_codes and row.cosine is not None
    ]
    if not cosines:
        return ()
    low, high = min(cosines), min(max(cosines), 1.0)
    step = round_step(max((high - low) / _ABOUT_BINS, 10.0**-_MOST_DIGITS))
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9) - 1, first)
    counts = [0] * (last - first + 1)
    for cosine in cosines:
        counts[min(max(math.floor(cosine / step + 1e-9), first), last) - first] += 1
    digits = _digits(step)
    bins = []
    for index, count in enumerate(counts, first):
        below, above = round(index * step, 12), round((index + 1) * step, 12)
        label = f"[{below:.{digits}f}, {above:.{digits}f}{']' if index == last else ')'}"
        bins.append(Bin(below, above, label, count, count / len(cosines)))
    return tuple(one for one in reversed(bins) if one.layers)


def _digits(step: float) -> int:
    """After the point, that tell multiples of `step` apart."""
    return next(digits for digits in range(16) if math.isclose(round(step, digits), step, rel_tol=1e-6))
