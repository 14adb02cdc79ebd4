"""A report as titled tables of text, which Markdown, HTML and the terminal each show in their own way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from arrowquant_dist.config.spec import UNTOUCHED
from arrowquant_dist.errors import counted
from arrowquant_dist.reduce.figures import KeptLayer, LayerTypeFigures, ReportFigures, Stat
from arrowquant_dist.report import text
from arrowquant_dist.report.text import MISSING, LayerName

WEIGHT_COSINE_NOTE = (
    "Weight cosine is not accuracy. It says how close the stored weights are to the original ones, not how "
    "close the model's outputs are: with all-MiniLM-L6-v2 at 2 bits, round-to-nearest keeps a mean weight "
    "cosine of 0.72, but the embeddings are unrelated to those of the original (their cosine is 0.03). Measure "
    "the outputs with `arrowquant evaluate` before you rely on a dataset."
)
_NAMED_PER_REASON = 20
_TELEPHONE_COLUMNS, _TELEPHONE_CHARS = 3, 36
_NAMED_NODES = 20


@dataclass(frozen=True, slots=True)
class Table:
    """A titled table. Cells are plain text, or LayerName for names. headers: headers of the columns; all empty for a
    list of facts. align: `l` or `r` for each column. drop: headers of columns that a narrow terminal can do without, in
    the order in which they are dropped."""

    title: str
    headers: tuple[str, ...]
    align: str
    rows: tuple[tuple[str, ...], ...]
    drop: tuple[str, ...] = ()

    @property
    def is_wide(self) -> bool:
        """Whether the columns are too wide to be side by side on a phone; text may wrap at words, figures may not."""
        columns = zip(self.align, zip(self.headers, *self.rows, strict=True), strict=True)
        chars = (
            max((len(part) for cell in cells for part in ([cell] if way == "r" else cell.split())), default=0)
            for way, cells in columns
        )
        return len(self.headers) > _TELEPHONE_COLUMNS or sum(chars) > _TELEPHONE_CHARS


@dataclass(frozen=True, slots=True)
class KeptByReason:
    """Layers that are not quantized for the same reason. params: their number of values. layers: the largest first."""

    reason: str
    params: int
    layers: tuple[KeptLayer, ...]

    @property
    def named(self) -> tuple[LayerName, ...]:
        return tuple(LayerName(layer.layer_name) for layer in self.layers[:_NAMED_PER_REASON])

    @property
    def unnamed(self) -> int:
        return max(0, len(self.layers) - _NAMED_PER_REASON)


def lead(report: ReportFigures) -> str:
    """One line that says what was made, from what and when."""
    stored = ", ".join(
        f"{count.layers} not quantized"
        if count.quant_type == UNTOUCHED
        else f"{count.layers} as {count.quant_type}"
        for count in report.quant_types
    )
    made = f"{counted(report.totals.layers, 'layer')} of {report.source.get('uri')}: {stored}"
    return f"{made}; {text.params(report.totals.params)} params, {text.minute(report.run.started_at)}"


def essentials(report: ReportFigures) -> Table:
    """The most important facts, in two columns."""
    totals, timing = report.totals, report.timing
    kept = len(report.kept_layers)
    rows: list[tuple[str, str]] = [
        ("source", str(report.source.get("uri"))),
        ("stored as", ", ".join(f"{count.quant_type} ({count.layers})" for count in report.quant_types)),
        ("layers", f"{totals.layers}: {totals.layers - kept} quantized, {kept} kept"),
        ("params", text.params(totals.params)),
        ("size", f"{text.nbytes(totals.source_nbytes)} → {text.nbytes(totals.parts_nbytes)}"),
        ("compression", _ratios(totals.compression_vs_source, totals.compression_vs_fp16)),
        *_accuracy_lines(report),
        ("time", f"{text.seconds(timing.wall_seconds)} ({_phases(timing.phases)}, {_summed_over(report)})"),
        ("throughput", _throughput(report)),
        ("workers", _workers(report)),
        ("repeated", _repeated(report)),
        ("peak memory", text.nbytes(timing.peak_memory_nbytes)),
    ]
    return Table("Essentials", ("", ""), "ll", tuple(rows))


def _ratios(vs_source: float | None, vs_fp16: float | None) -> str:
    return f"{text.times(vs_fp16)} against fp16, {text.times(vs_source)} against the source"


def _accuracy_lines(report: ReportFigures) -> Iterable[tuple[str, str]]:
    accuracy = report.accuracy
    if accuracy is None:
        keeps = report.config.get("keep_codes")
        yield (
            "weight cosine",
            "not known, since codes are the source's own" if keeps else "nothing is quantized",
        )
        return
    if accuracy.cosine is not None:
        stat = accuracy.cosine
        spread = f"min {text.cosine(stat.min)}, std {text.small(stat.std)}"
        yield "weight cosine", f"mean {text.cosine(stat.mean)}, {spread}"
    if accuracy.precision_loss is not None:
        yield "precision loss", f"mean {text.small(accuracy.precision_loss.mean)} (1 − cosine)"
    if accuracy.sqnr_db is not None:
        sqnr = accuracy.sqnr_db
        yield "SQNR", f"mean {text.decibel(sqnr.mean)}, min {text.decibel(sqnr.min)}"
    yield "max error", text.small(accuracy.max_error)


def _phases(phases: Mapping[str, float]) -> str:
    return ", ".join(f"{phase} {text.seconds(seconds)}" for phase, seconds in phases.items()) or MISSING


def _summed_over(report: ReportFigures) -> str:
    return f"summed over workers{' and runs' if report.run.resumed_shards else ''}"


def _throughput(report: ReportFigures) -> str:
    timing = report.timing
    if timing.params_per_second is None:
        return "every shard was finished before this run"
    by_bytes = text.rate(timing.source_nbytes_per_second, "B")
    return f"{text.rate(timing.params_per_second, 'params')}, {by_bytes}"


def _workers(report: ReportFigures) -> str:
    run, work = report.run, report.work
    if work is None:
        return f"{run.workers} ({run.engine})"
    if not work.this_run.shards:
        return "had nothing to do"
    nodes = counted(len(work.nodes), "node")
    busy = f", {text.share(work.efficiency)} of their time useful" if work.efficiency is not None else ""
    wasted = work.wasted_share or 0.0
    lost = f", {text.share(wasted)} wasted ({text.seconds(run.wasted_seconds)})" if wasted else ""
    return f"{run.workers} ({run.engine}) on {nodes}{busy}{lost}"


def _repeated(report: ReportFigures) -> str:
    run, work = report.run, report.work
    shards = f"{counted(run.shard_retries, 'shard')}, {run.stolen} more near the end"
    if work is None:
        return f"{shards}; requests were not counted"
    requests = work.this_run.request_retries
    if not (run.shard_retries or run.stolen or requests):
        return "nothing"
    return f"{shards}; {counted(requests, 'request')}"


def layer_types(report: ReportFigures) -> Table:
    headers = (
        "type",
        "layers",
        "params",
        "source",
        "fp16",
        "stored",
        "× source",
        "× fp16",
        "cosine",
        "min cosine",
    )
    return Table(
        "By layer type",
        headers,
        "lrrrrrrrrr",
        tuple(_layer_type_row(figures) for figures in report.layer_types),
        drop=("fp16", "source", "params", "× source", "cosine", "layers"),
    )


def _layer_type_row(figures: LayerTypeFigures) -> tuple[str, ...]:
    sizes = figures.sizes
    stat = figures.accuracy.cosine if figures.accuracy is not None else None
    return (
        figures.layer_type,
        str(sizes.layers),
        text.params(sizes.params),
        text.nbytes(sizes.source_nbytes),
        text.nbytes(sizes.fp16_nbytes),
        text.nbytes(sizes.stored_nbytes),
        text.times(sizes.compression_vs_source),
        text.times(sizes.compression_vs_fp16),
        text.cosine(stat.mean if stat is not None else None),
        text.cosine(stat.min if stat is not None else None),
    )


def accuracy(report: ReportFigures) -> Table:
    """Mean, min, max and std of each figure over quantized layers, and the figure of all their values as one vector."""
    figures = report.accuracy
    rows: tuple[tuple[str, ...], ...] = ()
    if figures is not None:
        rows = (
            ("cosine", *_stat(figures.cosine, text.cosine), text.cosine(figures.overall_cosine)),
            ("precision loss (1 − cosine)", *_stat(figures.precision_loss, text.small), MISSING),
            ("MSE", *_stat(figures.mse, text.small), text.small(figures.overall_mse)),
            ("SQNR", *_stat(figures.sqnr_db, text.decibel), text.decibel(figures.overall_sqnr_db)),
            ("max error", MISSING, MISSING, text.small(figures.max_error), MISSING, MISSING),
        )
    return Table(
        "Error of the weights",
        ("over quantized layers", "mean", "min", "max", "std", "overall"),
        "lrrrrr",
        rows,
        drop=("std", "overall", "max"),
    )


def _stat(stat: Stat | None, form: text.Form) -> tuple[str, str, str, str]:
    if stat is None:
        return MISSING, MISSING, MISSING, MISSING
    return form(stat.mean), form(stat.min), form(stat.max), text.small(stat.std)


def distribution(report: ReportFigures) -> Table:
    rows = tuple(
        (bucket.label, str(bucket.layers), text.share(bucket.share)) for bucket in report.distribution
    )
    return Table("Distribution of the weight cosine", ("cosine", "layers", "share"), "lrr", rows)


def worst_layers(report: ReportFigures) -> Table:
    rows = tuple(
        (
            LayerName(layer.layer_name),
            layer.layer_type,
            text.shape(layer.shape),
            layer.quant_type,
            text.cosine(layer.cosine),
            text.decibel(layer.sqnr_db),
            text.small(layer.max_error),
        )
        for layer in report.worst_layers
    )
    headers = ("layer", "type", "shape", "stored as", "cosine", "SQNR", "max error")
    drop = ("shape", "max error", "type", "SQNR", "stored as")
    return Table("Layers with the lowest cosine", headers, "llllrrr", rows, drop)


def quant_types(report: ReportFigures) -> Table:
    rows = tuple(
        (count.quant_type, str(count.layers), text.params(count.params)) for count in report.quant_types
    )
    return Table("Stored as", ("type", "layers", "params"), "lrr", rows)


def sizes(report: ReportFigures) -> Table:
    totals = report.totals
    rows = (
        ("source, in its own dtypes", text.nbytes(totals.source_nbytes), f"{totals.source_nbytes:,}"),
        ("source at fp16", text.nbytes(totals.fp16_nbytes), f"{totals.fp16_nbytes:,}"),
        ("codes and kept values, uncompressed", text.nbytes(totals.data_nbytes), f"{totals.data_nbytes:,}"),
        ("scales", text.nbytes(totals.scales_nbytes), f"{totals.scales_nbytes:,}"),
        ("zero points", text.nbytes(totals.zero_points_nbytes), f"{totals.zero_points_nbytes:,}"),
        (
            f"values as stored ({report.part_compression})",
            text.nbytes(totals.stored_nbytes),
            f"{totals.stored_nbytes:,}",
        ),
        ("part files", text.nbytes(totals.parts_nbytes), f"{totals.parts_nbytes:,}"),
    )
    return Table("Bytes", ("what", "size", "bytes"), "lrr", rows)


def run_facts(report: ReportFigures) -> Table:
    run, host = report.run, report.run.host
    rows = (
        ("engine", f"{run.engine}, {counted(run.workers, 'worker')}"),
        ("started", text.moment(run.started_at)),
        ("driver", _phases(run.phases)),
        ("shards", f"{report.totals.shards}, {len(run.resumed_shards)} of them finished by an earlier run"),
        ("bytes moved", _bytes_moved(report)),
        ("rate of a busy worker", _worker_rates(report)),
        ("tied tensors stored under another name", str(report.totals.aliases)),
        (
            "host",
            f"{host.system}, {counted(host.cpus, 'CPU')}, {text.nbytes(host.memory_nbytes)}, "
            f"Python {host.python}",
        ),
        ("versions", ", ".join(f"{name} {version}" for name, version in host.versions.items())),
        ("fingerprint", report.fingerprint),
    )
    return Table("The run", ("", ""), "ll", rows)


def _bytes_moved(report: ReportFigures) -> str:
    work = report.work
    if work is None:
        return MISSING
    read, written = work.this_run.read_nbytes, work.this_run.written_nbytes
    each = f" ({work.read_per_source:.2f} per byte of weights)" if work.read_per_source is not None else ""
    return f"{text.nbytes(read)} read{each}, {text.nbytes(written)} written by this run's workers"


def _worker_rates(report: ReportFigures) -> str:
    workers = report.work.workers if report.work is not None else ()
    rates = [share.source_nbytes_per_second for share in workers]
    stat = Stat.over(rate for rate in rates if rate is not None)
    if stat is None:
        return MISSING
    spread = f"min {text.rate(stat.min, 'B')}, max {text.rate(stat.max, 'B')}"
    return f"mean {text.rate(stat.mean, 'B')}, {spread}, of {counted(len(rates), 'process', 'processes')}"


def nodes(report: ReportFigures) -> Table:
    """What each node did, the fastest first. If there are many nodes, only the fastest and the slowest are listed."""
    every = report.work.nodes if report.work is not None else ()
    shares = every
    if len(shares) > _NAMED_NODES:
        shares = (*shares[: _NAMED_NODES // 2], *shares[-_NAMED_NODES // 2 :])
    rows = tuple(
        (
            LayerName(share.name),
            str(share.workers),
            str(share.shards),
            text.nbytes(share.source_nbytes),
            text.nbytes(share.part_nbytes),
            text.seconds(share.busy_seconds),
            text.rate(share.source_nbytes_per_second, "B"),
        )
        for share in shares
    )
    headers = ("node", "processes", "shards", "source", "parts", "busy", "rate while busy")
    title = "Nodes" if len(rows) == len(every) else f"Nodes, {len(rows)} of {len(every)}"
    return Table(title, headers, "lrrrrrr", rows, drop=("processes", "parts", "busy", "shards", "source"))


def kept_groups(report: ReportFigures) -> tuple[KeptByReason, ...]:
    """Kept layers grouped by reason; the reason that keeps the most params comes first."""
    by_reason: dict[str, list[KeptLayer]] = {}
    for layer in report.kept_layers:
        by_reason.setdefault(layer.reason, []).append(layer)
    groups = [
        KeptByReason(reason, sum(layer.params for layer in layers), _largest_first(layers))
        for reason, layers in by_reason.items()
    ]
    return tuple(sorted(groups, key=lambda group: -group.params))


def _largest_first(layers: Sequence[KeptLayer]) -> tuple[KeptLayer, ...]:
    return tuple(sorted(layers, key=lambda layer: (-layer.params, layer.layer_name)))


def config_lines(report: ReportFigures) -> tuple[str, ...]:
    """The config as lines of YAML."""
    import yaml

    return tuple(yaml.safe_dump(report.config, sort_keys=False, allow_unicode=False, width=100).splitlines())


def tables(report: ReportFigures) -> tuple[Table, ...]:
    """All tables of a full report, in reading order; those without rows are left out."""
    every = (
        essentials(report),
        layer_types(report),
        accuracy(report),
        distribution(report),
        worst_layers(report),
        quant_types(report),
        sizes(report),
        run_facts(report),
        nodes(report),
    )
    return tuple(table for table in every if table.rows)
