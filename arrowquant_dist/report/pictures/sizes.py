"""The size of the layers of each type, in the source and stored."""

from __future__ import annotations

from arrowquant_dist.reduce.figures import ReportFigures
from arrowquant_dist.report import text
from arrowquant_dist.report.pictures.svg import Picture, box, drawing, words

_LEFT, _ROOM, _BAR, _GAP = 92.0, 196.0, 14.0, 12.0


def size_by_layer_type(report: ReportFigures) -> Picture:
    """Three bars for each layer type: source, at fp16 and stored."""
    title = "Size by layer type"
    every = [
        (
            figures.layer_type,
            figures.sizes.source_nbytes,
            figures.sizes.fp16_nbytes,
            figures.sizes.stored_nbytes,
        )
        for figures in report.layer_types
    ]
    largest = max((max(sizes) for _, *sizes in every), default=0)
    parts, y = [], 2.0
    for layer_type, *sizes in every:
        parts.append(words(_LEFT - 8, y + 1.5 * _BAR + 6, layer_type, "", "end"))
        for nbytes, tone in zip(sizes, ("source", "fp16", "stored"), strict=True):
            width = _ROOM * nbytes / largest if largest else 0.0
            parts.append(box(_LEFT, y, width, _BAR, tone))
            parts.append(words(_LEFT + width + 6, y + 11, text.nbytes(nbytes), "axis"))
            y += _BAR + 2
        y += _GAP
    figures = "; ".join(
        f"{layer_type} {' to '.join(text.nbytes(nbytes) for nbytes in (source, stored))}"
        for layer_type, source, _, stored in every
    )
    legend = (("source", "source"), ("fp16", "at fp16"), ("stored", "stored"))
    return Picture(title, drawing(title, max(1.0, y - _GAP), parts, figures), legend)
