"""The few lines that are printed at the end of a run, short enough for one screen. The whole report is in files."""

from __future__ import annotations

from collections.abc import Iterator

from arrowquant_dist.reduce.figures import ReportFigures
from arrowquant_dist.report import text
from arrowquant_dist.report.text import LayerName
from arrowquant_dist.report.view import Table

REPORT_PAGE = "report/report.html"


def ending(title: str, report: ReportFigures, target: str) -> Table:
    """Sizes, the error of the weights, the worst layer and the place of the report. target: the target as the user gave
    it."""
    return Table(title, ("", ""), "ll", tuple(_lines(report, target)))


def _lines(report: ReportFigures, target: str) -> Iterator[tuple[str, str]]:
    totals = report.totals
    bits = f", {text.bits(totals.parts_nbytes, totals.params)} a weight" if totals.params else ""
    yield "size", f"{text.nbytes(totals.source_nbytes)} → {text.nbytes(totals.parts_nbytes)}{bits}"
    against_source, against_fp16 = totals.compression_vs_source, totals.compression_vs_fp16
    yield "compression", f"{text.times(against_source)} vs source, {text.times(against_fp16)} vs fp16"
    cosine = report.accuracy.cosine if report.accuracy is not None else None
    if cosine is not None:
        yield "weight cosine", f"mean {text.cosine(cosine.mean)}, min {text.cosine(cosine.min)}"
    if report.worst_layers:
        yield "worst layer", LayerName(report.worst_layers[0].layer_name)
    yield "report", f"{target.rstrip('/')}/{REPORT_PAGE}"
