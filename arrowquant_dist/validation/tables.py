"""The tables of a validation's report, in reading order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from arrowquant_dist.errors import counted
from arrowquant_dist.reduce.figures import Accuracy
from arrowquant_dist.reduce.layer_types import LAYER_TYPES
from arrowquant_dist.report import text
from arrowquant_dist.report.evaluated import measures
from arrowquant_dist.report.evaluation import Evaluation
from arrowquant_dist.report.layer_rows import LayerRow
from arrowquant_dist.report.text import MISSING, Verdict
from arrowquant_dist.report.view import Table
from arrowquant_dist.validation.figures import (
    CATEGORIES,
    FAILED,
    NOT_MEASURED,
    PASSED,
    Criterion,
    DatasetFigures,
    LoadTime,
    MemoryUse,
    Resident,
    Validation,
)
from arrowquant_dist.validation.measures import BY_KEY, MEASURABLES, Measurable

_TO_BE_KNOWN = (
    "compression_vs_fp16",
    "compression_vs_source",
    "weight_cosine",
    "output_cosine",
    "perplexity_excess",
    "kl_divergence",
)
_TONES = {PASSED: "good", FAILED: "bad", NOT_MEASURED: "open"}


def summary(found: Validation) -> Table:
    """One row for each metric, one column for each config. Metrics with targets come first, then the important ones
    without."""
    names = [one.name for one in found.datasets]
    metrics: dict[str, list[Criterion]] = {}
    for one in found.criteria:
        metrics.setdefault(one.label, []).append(one)
    rows = [
        (label, _targets(own), *(_result(one, own) for one in found.datasets), _together(own))
        for label, own in metrics.items()
    ]
    for each in MEASURABLES:
        shown = [_form(each, one) for one in found.datasets]
        if each.label not in metrics and each.key in _TO_BE_KNOWN and any(one != MISSING for one in shown):
            rows.append((each.label, "none", *shown, MISSING))
    headers = ("metric", "target", *names, "status")
    return Table("Summary", headers, f"ll{'r' * len(names)}l", tuple(rows))


def _result(one: DatasetFigures, criteria: Sequence[Criterion]) -> str:
    """The result of one config, also if it has no target itself. A failure is marked as such."""
    of = {each.config: each for each in criteria}
    own = of.get(one.name, of.get(""))
    if own is None:
        key = criteria[0].key
        return _form(BY_KEY[key], one) if key in BY_KEY else MISSING
    return f"{own.result} ({own.status})" if own.status == FAILED else own.result


def _form(each: Measurable, one: DatasetFigures) -> str:
    value = each.figure(one)
    return each.form(value) if value is not None else MISSING


def _targets(criteria: Sequence[Criterion]) -> str:
    """The target, if all configs have the same one; otherwise each target with its config."""
    if len({one.target for one in criteria}) == 1 and (len(criteria) > 1 or not criteria[0].config):
        return criteria[0].target
    return ", ".join(f"{one.target} ({one.config})" for one in criteria)


def _together(criteria: Iterable[Criterion]) -> Verdict:
    found = {one.status for one in criteria}
    status = FAILED if FAILED in found else NOT_MEASURED if NOT_MEASURED in found else PASSED
    return Verdict(status, _TONES[status])


def environment(found: Validation) -> Table:
    at = found.environment
    disk = MISSING
    if at.disk_nbytes is not None and at.disk_free_nbytes is not None:
        disk = f"{text.nbytes(at.disk_nbytes)}, {text.nbytes(at.disk_free_nbytes)} free"
    rows = [
        ("CPU", f"{at.cpu}, {counted(at.cpus, 'CPU')}"),
        ("memory", text.nbytes(at.memory_nbytes)),
        ("disk of OUT", disk),
        ("system", at.system),
        ("Python", at.python),
        *at.versions.items(),
    ]
    return Table("Environment", ("", ""), "ll", tuple(rows))


def model(found: Validation) -> Table:
    source = found.source
    rows = [
        ("source", source.name if source.name == source.uri else f"{source.name}: {source.uri}"),
        ("format", source.format),
        ("params", text.params(source.params)),
        ("layers", str(source.layers)),
        ("dtypes", ", ".join(f"{name} ({text.params(params)})" for name, params in source.dtypes.items())),
        (
            "size",
            f"{text.nbytes(source.nbytes)} in its own dtypes, {text.nbytes(source.fp16_nbytes)} at fp16",
        ),
    ]
    return Table("Model", ("", ""), "ll", tuple(rows))


def modes(found: Validation) -> Table:
    """Sizes side by side: of the source as it is, of the source at fp16, and of each dataset."""
    source = found.source
    half, whole = source.fp16_nbytes, source.nbytes
    rows = [
        _size_row("source", whole, half, whole, source.params),
        _size_row("fp16", half, half, whole, source.params),
    ]
    for one in found.datasets:
        rows.append(_size_row(one.name, one.compression.parts_nbytes, half, whole, source.params))
    headers = ("mode", "size", "× fp16", "× source", "saved vs fp16", "saved vs source", "bits a value")
    return Table("Sizes", headers, "lrrrrrr", tuple(rows))


def _size_row(name: str, nbytes: int, half: int, whole: int, params: int) -> tuple[str, ...]:
    if not (nbytes and half and params):
        return (name, text.nbytes(nbytes), *([MISSING] * 5))
    saved = (text.share(1 - nbytes / of) if nbytes <= of else MISSING for of in (half, whole))
    ratios = (text.times(of / nbytes) for of in (half, whole))
    return name, text.nbytes(nbytes), *ratios, *saved, f"{8 * nbytes / params:.2f}"


def efficiency(found: Validation) -> Table:
    rows = []
    for one in found.datasets:
        own = one.compression
        of = own.parts_nbytes or 1
        raw = one.report.totals
        uncompressed = raw.data_nbytes + raw.scales_nbytes + raw.zero_points_nbytes
        rows.append(
            (
                one.name,
                text.times(own.theoretical),
                text.times(own.uncompressed),
                text.times(own.actual),
                text.share(own.efficiency) if own.efficiency is not None else MISSING,
                text.share(own.scales_nbytes / (uncompressed or 1)),
                text.share(own.kept_nbytes / of),
                text.share(own.framing_nbytes / of),
            )
        )
    headers = (
        *("config", "theoretical", "uncompressed", "actual", "efficiency"),
        *("scales (of uncompressed)", "kept (of stored)", "framing (of stored)"),
    )
    return Table("Theoretical against actual, all against fp16", headers, "lrrrrrrr", tuple(rows))


def weights(found: Validation) -> Table:
    rows = []
    for one in found.datasets:
        own = one.report.accuracy
        if own is None or own.cosine is None or own.precision_loss is None:
            rows.append((one.name, *([MISSING] * 7)))
            continue
        stat = own.cosine
        rows.append(
            (
                one.name,
                str(own.layers),
                text.cosine(stat.mean),
                text.cosine(stat.min),
                text.cosine(stat.max),
                text.small(stat.std),
                _loss(own.precision_loss.mean),
                text.decibel(own.overall_sqnr_db),
            )
        )
    headers = ("config", "layers", "mean", "min", "max", "std", "precision loss", "SQNR, overall")
    return Table("Cosine of the weights, over quantized layers", headers, "lrrrrrrr", tuple(rows))


def _loss(value: float) -> str:
    return f"{100 * value:.3g} %"


def by_layer_type(found: Validation) -> Table:
    """One row for each layer type and config: how many of its layers are quantized, and their loss of precision."""
    rows = []
    for kind in LAYER_TYPES:
        for one in found.datasets:
            own = [row for row in one.layers if row.layer_type == kind]
            accuracy = next(
                (each.accuracy for each in one.report.layer_types if each.layer_type == kind), None
            )
            if own:
                rows.append((kind, one.name, str(len(own)), *_type_cells(own, accuracy)))
    headers = ("layer type", "config", "layers", "quantized", "cosine", "precision loss")
    return Table("By layer type", headers, "llrrrr", tuple(rows))


def _type_cells(own: Sequence[LayerRow], accuracy: Accuracy | None) -> tuple[str, str, str]:
    """Number, cosine and loss of the quantized layers or, if there are none, the loss of those rounded to fp16. Kept
    layers lose nothing."""
    quantized = sum(row.is_quantized for row in own)
    if accuracy is not None and accuracy.cosine is not None and accuracy.precision_loss is not None:
        return str(quantized), text.cosine(accuracy.cosine.mean), _loss(accuracy.precision_loss.mean)
    if quantized:
        return str(quantized), MISSING, MISSING
    rounded = [row.cosine for row in own if row.mse and row.cosine is not None]
    return ("none", "fp16", _loss(1 - sum(rounded) / len(rounded))) if rounded else ("none", "kept", "none")


def spread(one: DatasetFigures) -> Table:
    rows = tuple((each.label, str(each.layers), text.share(each.share)) for each in one.distribution)
    return Table(f"Distribution of the cosine, {one.name}", ("cosine", "layers", "share"), "lrr", rows)


def outputs(found: Validation) -> Table:
    """One row for each figure, one column for each config."""
    own = [{} if one.evaluation is None else _measured(one.evaluation) for one in found.datasets]
    labels = dict.fromkeys(label for each in own for label in each)
    rows = tuple((label, *(each.get(label, NOT_MEASURED) for each in own)) for label in labels)
    headers = ("", *(one.name for one in found.datasets))
    return Table("Outputs against the original's", headers, f"l{'r' * len(own)}", rows)


def _measured(evaluation: Evaluation) -> dict[str, str]:
    return {each.label: each.shown for each in measures(evaluation)}


def schema(found: Validation) -> Table:
    rows = tuple(
        (one.name, one.config or MISSING, Verdict(one.status, _TONES[one.status]), one.said)
        for one in found.checks
    )
    return Table("Checks", ("check", "config", "status", "what was checked"), "llll", rows)


def phases(found: Validation) -> Table:
    """Seconds and shares of the phases of the driver and of the workers, one column for each config."""
    names = [one.name for one in found.datasets]
    rows = [
        ("total", *(text.seconds(one.speed.wall_seconds) for one in found.datasets)),
        *_phase_rows("driver", [one.speed.phases for one in found.datasets]),
        *_phase_rows("workers", [one.speed.worker_phases for one in found.datasets]),
        ("workers", *(str(one.speed.workers) for one in found.datasets)),
        ("layers", *(str(one.report.totals.layers) for one in found.datasets)),
        ("rate", *(text.rate(one.report.timing.params_per_second, "params") for one in found.datasets)),
        ("measured", *(_when(one) for one in found.datasets)),
    ]
    return Table("Quantization by phase", ("", *names), f"l{'r' * len(names)}", tuple(rows))


def _phase_rows(whose: str, phases: Sequence[dict[str, float]]) -> list[tuple[str, ...]]:
    names = dict.fromkeys(name for own in phases for name in own)
    return [
        (f"{whose}: {name}", *(_of_all(own.get(name), sum(own.values())) for own in phases)) for name in names
    ]


def _of_all(seconds: float | None, every: float) -> str:
    if seconds is None:
        return MISSING
    return f"{text.seconds(seconds)} ({text.share(seconds / every if every else 0.0)})"


def _when(one: DatasetFigures) -> str:
    return "now" if one.speed.measured_now else text.minute(one.speed.started_at)


def loading(found: Validation) -> Table:
    source = f"source ({found.source.format})"
    loads = [(source, found.source_load)]
    loads += [("source as V1", found.v1_load)] if found.v1_load is not None else []
    loads += [(one.name, one.load) for one in found.datasets]
    headers = ("format", "load time", "read", "read per second", "decoded per second", "verified")
    return Table("Loading", headers, "lrrrrl", tuple(_load_row(name, one) for name, one in loads))


def _load_row(name: str, one: LoadTime) -> tuple[str, ...]:
    return (
        name,
        text.seconds(one.seconds),
        text.nbytes(one.stored_nbytes),
        *(text.rate(of / one.seconds, "B") for of in (one.stored_nbytes, one.decoded_nbytes)),
        "every checksum" if one.verified else "no checksums",
    )


def memory(found: Validation) -> Table:
    uses = [found.source_memory, *(one.memory for one in found.datasets)]
    rows = (
        ("files", *(text.nbytes(one.file_nbytes) for one in uses)),
        ("peak while loading, decoded", *(_resident(one, one.decoded, "peak_nbytes") for one in uses)),
        ("at run time, decoded", *(_resident(one, one.decoded, "kept_nbytes") for one in uses)),
        ("peak while loading, as codes", *(_resident(one, one.codes, "peak_nbytes") for one in uses)),
        ("at run time, as codes", *(_resident(one, one.codes, "kept_nbytes") for one in uses)),
    )
    headers = ("", *(one.name for one in uses))
    return Table("Memory of a process, for the weights", headers, f"l{'r' * len(uses)}", rows)


def _resident(use: MemoryUse, one: Resident | None, figure: str) -> str:
    if one is not None:
        return text.nbytes(getattr(one, figure))
    return NOT_MEASURED if use.reason else MISSING


def categories(found: Validation) -> Table:
    rows = []
    for category in CATEGORIES:
        own = [one.status for one in found.criteria if one.category == category]
        if own:
            counts = (own.count(status) for status in (PASSED, FAILED, NOT_MEASURED))
            rows.append((category, str(len(own)), *map(str, counts)))
    every = [one.status for one in found.criteria]
    rows.append(("all", str(len(every)), *(str(every.count(s)) for s in (PASSED, FAILED, NOT_MEASURED))))
    headers = ("category", "criteria", "passed", "failed", "not measured")
    return Table("Criteria by category", headers, "lrrrr", tuple(rows))


def acceptance(found: Validation) -> Table:
    rows = tuple(
        (
            one.label,
            one.config or MISSING,
            one.target,
            one.result,
            Verdict(one.status, _TONES[one.status]),
            one.said if one.status != PASSED else "",
        )
        for one in found.criteria
    )
    headers = ("criterion", "config", "target", "result", "status", "why")
    return Table("Criteria", headers, "lllrll", rows)
