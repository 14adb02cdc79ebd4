"""Theoretical and actual compression, and the distribution of the weights' cosines."""

from __future__ import annotations

import math
from collections.abc import Sequence

from arrowquant_dist.config import BITS
from arrowquant_dist.reduce.figures import ReportFigures
from arrowquant_dist.reduce.ratios import ratio
from arrowquant_dist.report.layer_rows import LayerRow
from arrowquant_dist.report.pictures.noise import bins
from arrowquant_dist.validation.figures import Bin, Compression

_HALF_BITS = 16
_BELOW_ONE = 1 - 1e-12


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
    """Bits of a code; the largest number if the layer's blocks differ."""
    return max(BITS[kind] for kind in row.quant_type.split("+") if kind in BITS)


def cosine_bins(rows: Sequence[LayerRow]) -> tuple[Bin, ...]:
    """Bins of a round width, like those of the histogram on a report's page: highest first, without empty ones. Returns
    no bins if no layer has a cosine."""
    known = [
        row.cosine for row in rows if row.is_quantized and not row.keeps_codes and row.cosine is not None
    ]
    if not known:
        return ()
    low, step, counts = bins(
        [min(cosine, _BELOW_ONE) for cosine in known]
    )  # so that 1 is in the bin that ends at 1
    digits, last = _digits(step), len(counts) - 1
    found = []
    for index, count in enumerate(counts):
        below, above = round(low + index * step, 12), round(low + (index + 1) * step, 12)
        label = f"[{below:.{digits}f}, {above:.{digits}f}{']' if index == last else ')'}"
        found.append(Bin(below, above, label, count, count / len(known)))
    return tuple(one for one in reversed(found) if one.layers)


def _digits(step: float) -> int:
    """Number of decimals that are needed to tell multiples of `step` apart."""
    return next(digits for digits in range(16) if math.isclose(round(step, digits), step, rel_tol=1e-6))
