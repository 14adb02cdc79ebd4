"""Several datasets side by side: a column for each, in the given order, with the best value of each row marked."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from arrowquant_dist.reduce.figures import ReportFigures, Stat
from arrowquant_dist.report import text
from arrowquant_dist.report.compared import Compared
from arrowquant_dist.report.evaluated import HIGH, LOW, Measure, measures
from arrowquant_dist.report.reported import Reported
from arrowquant_dist.report.text import MISSING
from arrowquant_dist.report.view import Table


@dataclass(frozen=True, slots=True)
class Line:
    """One figure of all datasets. label: what it is. cells: its value for each dataset, as text. best: for each dataset
    whether none has a better value and one has a worse; all False if the datasets are not of one model."""

    label: str
    cells: tuple[str, ...]
    best: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """Lines on one subject, with a title."""

    title: str
    lines: tuple[Line, ...]


def comparison(compared: Compared) -> Table:
    """All lines as one table: a row for each figure, a column for each dataset."""
    lines = [line for section in sections(compared) for line in section.lines]
    headers = ("", *(one.name for one in compared.datasets))
    rows = tuple((line.label, *line.cells) for line in lines)
    return Table("Comparison", headers, "l" + "r" * len(compared.datasets), rows)


def sections(compared: Compared) -> tuple[Section, ...]:
    """All sections in reading order; those without a line are left out."""
    datasets = compared.datasets
    every = (
        Section("How it is stored", _facts(datasets)),
        Section("Size", tuple(_line(datasets, *one) for one in _SIZES)),
        Section("Error of the weights", (*(_line(datasets, *one) for one in _WEIGHTS), _shared(compared))),
        Section("Outputs against the original's", tuple(_outputs(datasets))),
        Section("The run", (_wall_time(datasets), *(_line(datasets, *one) for one in _RUN))),
    )
    found = tuple(section for section in every if section.lines)
    return tuple(map(_unmarked, found)) if compared.unlike else found


def _unmarked(section: Section) -> Section:
    return Section(
        section.title, tuple(replace(line, best=(False,) * len(line.best)) for line in section.lines)
    )


def methods(dataset: Reported) -> str:
    """The methods that chose scales and codes, each with its number of layers, as the layers were really made."""
    if dataset.layers is None:
        return str(dataset.report.config.get("method") or MISSING)
    return _named(row.method for row in dataset.layers if row.is_quantized)


def groups(dataset: Reported) -> str:
    """What shares a scale, each with its number of layers."""
    if dataset.layers is None:
        return MISSING
    return _named(row.groups for row in dataset.layers if row.is_quantized)


def _named(values: Iterable[str]) -> str:
    found = Counter(values).most_common()
    return ", ".join(f"{name} ({layers})" for name, layers in found) or MISSING


def _facts(datasets: Sequence[Reported]) -> tuple[Line, ...]:
    """Facts, which are neither good nor bad."""
    shown: tuple[tuple[str, Callable[[Reported], str]], ...] = (
        ("stored as", lambda one: _types(one.report)),
        ("method", methods),
        ("scales of", groups),
        ("zero points", lambda one: "yes" if one.report.totals.zero_points_nbytes else "none"),
        ("layers", lambda one: str(one.report.totals.layers)),
        ("kept layers", lambda one: str(len(one.report.kept_layers))),
        ("params", lambda one: text.params(one.report.totals.params)),
        ("source", lambda one: text.nbytes(one.report.totals.source_nbytes)),
    )
    unjudged = (False,) * len(datasets)
    return tuple(Line(label, tuple(map(say, datasets)), unjudged) for label, say in shown)


def _types(report: ReportFigures) -> str:
    return ", ".join(f"{count.quant_type} ({count.layers})" for count in report.quant_types)


_Figure = tuple[str, Callable[[ReportFigures], float | None], text.Form, int]


def stored_bits(report: ReportFigures) -> float | None:
    """Size of the part files in bits per value; None if there are no values."""
    return 8 * report.totals.parts_nbytes / report.totals.params if report.totals.params else None


def _form(form: Callable[[float], str]) -> text.Form:
    return lambda value: form(value) if value is not None else MISSING


def _stat(figure: str, of: str) -> Callable[[ReportFigures], float | None]:
    def read(report: ReportFigures) -> float | None:
        stat: Stat | None = getattr(report.accuracy, figure) if report.accuracy is not None else None
        return getattr(stat, of) if stat is not None else None

    return read


def _mean_sqnr(report: ReportFigures) -> float | None:
    """Mean SQNR of the quantized layers in dB; infinite if all of them are lossless."""
    accuracy = report.accuracy
    if accuracy is not None and 0 < accuracy.layers == accuracy.lossless_layers:
        return math.inf
    return _stat("sqnr_db", "mean")(report)


def _sqnr(value: float | None) -> str:
    return "lossless" if value == math.inf else text.decibel(value)


_SIZES: tuple[_Figure, ...] = (
    ("part files", lambda r: r.totals.parts_nbytes, _form(text.nbytes), LOW),
    ("× smaller than source", lambda r: r.totals.compression_vs_source, text.times, HIGH),
    ("× smaller than fp16", lambda r: r.totals.compression_vs_fp16, text.times, HIGH),
    ("stored bits a value", stored_bits, _form("{:.2f}".format), LOW),
)
_WEIGHTS: tuple[_Figure, ...] = (
    ("weight cosine, mean", _stat("cosine", "mean"), text.cosine, HIGH),
    ("weight cosine, min", _stat("cosine", "min"), text.cosine, HIGH),
    ("precision loss, mean", _stat("precision_loss", "mean"), text.small, LOW),
    ("MSE, mean", _stat("mse", "mean"), text.small, LOW),
    ("SQNR, mean", _mean_sqnr, _sqnr, HIGH),
    ("max error", lambda r: r.accuracy.max_error if r.accuracy is not None else None, text.small, LOW),
)
_RUN: tuple[_Figure, ...] = (
    ("throughput", lambda r: r.timing.params_per_second, lambda v: text.rate(v, "params"), HIGH),
    ("peak memory", lambda r: r.timing.peak_memory_nbytes, _form(text.nbytes), LOW),
    (
        "workers' time that was useful",
        lambda r: r.work.efficiency if r.work is not None else None,
        _form(text.share),
        HIGH,
    ),
    ("workers", lambda r: r.run.workers, _form("{:.0f}".format), 0),
)


def _line(
    datasets: Sequence[Reported],
    label: str,
    figure: Callable[[ReportFigures], float | None],
    form: text.Form,
    better: int,
) -> Line:
    values = [figure(one.report) for one in datasets]
    return _judged(label, [Measure(label, value, form(value), better) for value in values])


def _wall_time(datasets: Sequence[Reported]) -> Line:
    """Wall time. That of a run that continued an earlier one is not judged, since it is only part of the time."""
    label = "wall time"
    cells = []
    for one in datasets:
        seconds, earlier = one.report.timing.wall_seconds, len(one.report.run.resumed_shards)
        said = f"{text.seconds(seconds)} of the last run" if earlier else text.seconds(seconds)
        cells.append(Measure(label, seconds, said, 0 if earlier else LOW))
    return _judged(label, cells)


def _shared(compared: Compared) -> Line:
    label = "SQNR overall, over the same layers"
    return _judged(label, [Measure(label, each, _sqnr(each), HIGH) for each in compared.shared_sqnr])


def output_texts(datasets: Sequence[Reported]) -> dict[str, str]:
    """{digest: name} of all sets of texts with which at least one dataset was evaluated."""
    return {found.texts.digest: found.texts.name for one in datasets for found in one.evaluations}


def _outputs(datasets: Sequence[Reported]) -> list[Line]:
    """The figures of outputs with each set of texts with which at least one dataset was evaluated.

    Sets of texts are the same if they have the same digest.
    """
    return [
        _judged(f"{label} ({name})", cells)
        for digest, name in output_texts(datasets).items()
        for label, cells in outputs_with(datasets, digest).items()
    ]


def outputs_with(datasets: Sequence[Reported], digest: str) -> dict[str, list[Measure]]:
    """{figure: its value for each dataset} for the outputs with these texts. Values that were not measured are None."""
    found = [
        next((each for each in reversed(one.evaluations) if each.texts.digest == digest), None)
        for one in datasets
    ]
    known = [{each.label: each for each in measures(one)} if one is not None else {} for one in found]
    labels = dict.fromkeys(label for each in known for label in each)
    return {label: [each.get(label, Measure(label, None, MISSING, 0)) for each in known] for label in labels}


def _judged(label: str, cells: Sequence[Measure]) -> Line:
    """A line with its best cells marked. Values that look equal are equally good; if all look equal, none is best."""
    known = [cell for cell in cells if cell.value is not None and cell.better]
    best = max(known, key=lambda cell: cell.better * (cell.value or 0.0)).shown if known else None
    if len({cell.shown for cell in known}) < 2:
        best = None
    return Line(label, tuple(cell.shown for cell in cells), tuple(cell.shown == best for cell in cells))
