"""Geometry of the HTML report's bar charts; the template draws them as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from arrowquant_dist.reduce.figures import Report
from arrowquant_dist.report import text

WIDTH = 720
_LABEL_WIDTH = 130
_VALUE_WIDTH = 120
_BAR_HEIGHT = 16
_GAP = 10


@dataclass(frozen=True, slots=True)
class Bar:
    """One horizontal bar. y, width: SVG units. tone: the CSS class that colours it. label: may be empty."""

    label: str
    value: str
    y: float
    width: float
    tone: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars from x = `left` on. legend: (tone, meaning), empty where there is one tone."""

    title: str
    bars: tuple[Bar, ...]
    height: float
    legend: tuple[tuple[str, str], ...] = ()
    width: int = WIDTH
    left: int = _LABEL_WIDTH
    bar_height: int = _BAR_HEIGHT


def cosine_distribution(report: Report) -> Chart:
    """A bar a bucket, as long as its share of the quantized layers."""
    rows = [
        [(bucket.label, str(bucket.layers), float(bucket.layers), "stored")] for bucket in report.distribution
    ]
    return _chart("Quantized layers by weight cosine", rows)


def size_by_layer_type(report: Report) -> Chart:
    """Three bars a layer type: source, fp16, stored."""
    rows = [
        [
            (
                figures.layer_type,
                text.nbytes(figures.sizes.source_nbytes),
                figures.sizes.source_nbytes,
                "source",
            ),
            ("", text.nbytes(figures.sizes.fp16_nbytes), figures.sizes.fp16_nbytes, "fp16"),
            ("", text.nbytes(figures.sizes.stored_nbytes), figures.sizes.stored_nbytes, "stored"),
        ]
        for figures in report.layer_types
    ]
    legend = (("source", "source"), ("fp16", "at fp16"), ("stored", "stored"))
    return _chart("Size by layer type", rows, legend)


def _chart(
    title: str,
    groups: Sequence[Sequence[tuple[str, str, float, str]]],
    legend: tuple[tuple[str, str], ...] = (),
) -> Chart:
    """groups: bars (label, value, quantity, tone) that stand together, from the top down."""
    largest = max((quantity for group in groups for _, _, quantity, _ in group), default=0.0)
    room = WIDTH - _LABEL_WIDTH - _VALUE_WIDTH
    bars: list[Bar] = []
    y = 0.0
    for group in groups:
        for label, value, quantity, tone in group:
            width = room * quantity / largest if largest else 0.0
            bars.append(Bar(label, value, y, round(width, 1), tone))
            y += _BAR_HEIGHT + 2
        y += _GAP
    return Chart(title, tuple(bars), max(0.0, y - _GAP), legend)
