"""Several reports side by side: a column each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from arrowquant_dist.errors import counted
from arrowquant_dist.reduce.figures import Accuracy, Report, Stat
from arrowquant_dist.report import text
from arrowquant_dist.report.evaluated import compared_lines
from arrowquant_dist.report.evaluation import Evaluation
from arrowquant_dist.report.view import Table

_LINES: tuple[tuple[str, Callable[[Report], str]], ...] = (
    ("stored as", lambda r: ", ".join(f"{count.quant_type} ({count.layers})" for count in r.quant_types)),
    ("method", lambda r: str(r.config.get("method") or "default")),
    ("layers", lambda r: str(r.totals.layers)),
    ("kept layers", lambda r: str(len(r.kept_layers))),
    ("params", lambda r: text.params(r.totals.params)),
    ("source", lambda r: text.nbytes(r.totals.source_nbytes)),
    ("part files", lambda r: text.nbytes(r.totals.parts_nbytes)),
    ("× smaller than source", lambda r: text.times(r.totals.compression_vs_source)),
    ("× smaller than fp16", lambda r: text.times(r.totals.compression_vs_fp16)),
    ("weight cosine, mean", lambda r: text.cosine(_stat(r, "cosine", "mean"))),
    ("weight cosine, min", lambda r: text.cosine(_stat(r, "cosine", "min"))),
    ("precision loss, mean", lambda r: text.small(_stat(r, "precision_loss", "mean"))),
    ("MSE, mean", lambda r: text.small(_stat(r, "mse", "mean"))),
    ("SQNR, mean", lambda r: text.decibel(_stat(r, "sqnr_db", "mean"))),
    ("max error", lambda r: text.small(r.accuracy.max_error if r.accuracy is not None else None)),
    ("wall time", lambda r: text.seconds(r.timing.wall_seconds)),
    ("throughput", lambda r: text.rate(r.timing.params_per_second, "params")),
    ("peak memory", lambda r: text.nbytes(r.timing.peak_memory_nbytes)),
    ("workers' time that was useful", lambda r: _share(r.work.efficiency if r.work is not None else None)),
    ("engine", lambda r: f"{r.run.engine}, {counted(r.run.workers, 'worker')}"),
)


def comparison(
    reports: Sequence[tuple[str, Report]], evaluations: Sequence[Sequence[Evaluation]] = ()
) -> Table:
    """A line a figure, a column a report; `reports` are (name, report). evaluations: those of each dataset."""
    headers = ("", *(name for name, _ in reports))
    rows = [(label, *(figure(report) for _, report in reports)) for label, figure in _LINES]
    after = next(index for index, (label, _) in enumerate(_LINES) if label == "wall time")
    rows[after:after] = compared_lines(evaluations)
    return Table("Comparison", headers, "l" + "r" * len(reports), tuple(rows))


def _stat(report: Report, figure: str, of: str) -> float | None:
    accuracy: Accuracy | None = report.accuracy
    stat: Stat | None = getattr(accuracy, figure) if accuracy is not None else None
    return getattr(stat, of) if stat is not None else None


def _share(value: float | None) -> str:
    return text.share(value) if value is not None else text.MISSING
