"""Cards, which show the most important figures of a report at a glance: each has a verdict and its thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from arrowquant_dist.errors import counted
from arrowquant_dist.reduce.figures import ReportFigures
from arrowquant_dist.report import text
from arrowquant_dist.report.evaluation import EmbeddingFigures, Evaluation, NextTokenFigures
from arrowquant_dist.report.layer_rows import LayerRow

GOOD, LOOK, BAD, OPEN, FACT = "good", "look", "bad", "open", "fact"
_SAID = {GOOD: "good", LOOK: "worth a look", BAD: "too far off", OPEN: "not known", FACT: ""}

NOISE_GOOD_DB, NOISE_BAD_DB = 20.0, 10.0  # noise with 1 % and with 10 % of the weights' energy
COSINE_GOOD, COSINE_BAD = 0.99, 0.95
EXCESS_GOOD, EXCESS_BAD = 0.01, 0.05
KL_GOOD, KL_BAD = 0.02, 0.1  # nats; in most models one to two times the excess
USEFUL_GOOD = 0.7
KEPT_GOOD = 0.3
OUTLIER_DB = 6.0  # how far below the median layer: four times its noise
_FRAMING = 0.1  # share of the part files above which the card mentions it
_NAME_CHARS = 60
_COMPILED = 0.2  # share of the time of all phases above which the card mentions it


@dataclass(frozen=True, slots=True)
class Card:
    """A figure with a verdict. verdict: GOOD, LOOK, BAD, OPEN (not known) or FACT (not judged). why: an explanation,
    with the thresholds. words: text that states the verdict; the usual text for this verdict if empty."""

    title: str
    figure: str
    verdict: str
    why: str
    words: str = ""

    @property
    def said(self) -> str:
        return self.words or _SAID[self.verdict]


def cards(
    report: ReportFigures, evaluations: Sequence[Evaluation], rows: Sequence[LayerRow] | None
) -> tuple[Card, ...]:
    """The cards in reading order. rows: figures of all layers; None if they are not known."""
    every = [_size(report), *_outputs(evaluations), _weights(report)]
    if rows is not None:
        every += [_outliers(rows), _kept(report, rows)]
    return tuple(card for card in (*every, _run(report)) if card is not None)


def _size(report: ReportFigures) -> Card:
    totals = report.totals
    bits = f"{text.bits(totals.parts_nbytes, totals.params)} a value, " if totals.params else ""
    ratios = (totals.compression_vs_source, totals.compression_vs_fp16)
    sizes = (size_against(ratio, what) for ratio, what in zip(ratios, ("the source", "fp16"), strict=True))
    why = f"{bits}{', '.join(sizes)}. Good: smaller than both.{_framing(report)}"
    verdict = GOOD if all(ratio is not None and ratio > 1 for ratio in ratios) else LOOK
    return Card("Size", text.nbytes(totals.parts_nbytes), verdict, why)


def size_against(ratio: float | None, what: str) -> str:
    """The size compared with that of `what`. ratio: bytes of `what` over stored bytes."""
    if not ratio:  # there is nothing on one side
        return f"not comparable with {what}"
    return (
        f"{text.times(ratio)} smaller than {what}"
        if ratio >= 1
        else f"{text.times(1 / ratio)} larger than {what}"
    )


def _framing(report: ReportFigures) -> str:
    """How much of the part files is not values of layers, if that is much, such as in datasets of many small layers."""
    totals = report.totals
    framing = totals.parts_nbytes - totals.stored_nbytes
    if framing <= _FRAMING * totals.parts_nbytes:
        return ""
    return (
        f" {_percent(framing / totals.parts_nbytes)} of it is overhead of Parquet: names, checksums, footers."
    )


def _outputs(evaluations: Sequence[Evaluation]) -> list[Card]:
    """A card for each evaluation, the newest first."""
    if not evaluations:
        why = (
            "`arrowquant evaluate` compares the outputs of this dataset with those of the original. It does not change "
            "this page: `arrowquant report TARGET --html FILE` makes a new one, with the result."
        )
        return [Card("Outputs", "not measured", OPEN, why)]
    return [output_card(found) for found in reversed(evaluations)]


def output_card(found: Evaluation) -> Card:
    figures = found.figures
    of = f"With {counted(found.texts.texts, 'text')} ({found.texts.name})."
    if isinstance(figures, EmbeddingFigures):
        limits = f"Good: {COSINE_GOOD} or more; too far off: below {COSINE_BAD}."
        verdict = _from(figures.cosine_mean, COSINE_GOOD, COSINE_BAD)
        return Card("Outputs", f"cosine {figures.cosine_mean:.4f}", verdict, f"{of} {limits}")
    if isinstance(figures, NextTokenFigures):
        return _next_tokens_card(figures, of)
    raise TypeError(f"an evaluation without figures: {found}")


def _next_tokens_card(figures: NextTokenFigures, of: str) -> Card:
    """The card of a causal model, judged by the worse of both figures: the perplexity of a model that predicts other
    tokens may by chance be as low as the original's, or lower."""
    limits = (
        f"Compared with the original. Good: perplexity at most {_percent(EXCESS_GOOD)} higher and KL divergence at "
        f"most {KL_GOOD:g} nats; too far off: more than {_percent(EXCESS_BAD)} or {KL_BAD:g} nats."
    )
    by_excess = _from(-figures.excess, -EXCESS_GOOD, -EXCESS_BAD)
    by_kl = _from(-figures.kl_mean, -KL_GOOD, -KL_BAD)
    verdict = max(by_excess, by_kl, key=(GOOD, LOOK, BAD).index)
    found = f"perplexity {100 * figures.excess:+.2f} %, KL {text.small(figures.kl_mean)} nats"
    return Card("Outputs", found, verdict, f"{of} {limits}")


def _weights(report: ReportFigures) -> Card | None:
    accuracy = report.accuracy
    if accuracy is None:
        return None
    limits = f"Good: {NOISE_GOOD_DB:.0f} dB or more (noise of 1 %); too far off: below {NOISE_BAD_DB:.0f} dB (10 %)."
    overall = accuracy.overall_sqnr_db
    if overall is None:
        lossless = accuracy.lossless_layers == accuracy.layers
        return Card("Weights", "lossless" if lossless else text.MISSING, GOOD if lossless else OPEN, limits)
    cosine = f"Mean cosine {text.cosine(accuracy.cosine.mean)}. " if accuracy.cosine is not None else ""
    verdict = _from(overall, NOISE_GOOD_DB, NOISE_BAD_DB)
    return Card("Weights", f"SQNR {text.decibel(overall)}", verdict, f"{cosine}{limits}")


def _outliers(rows: Sequence[LayerRow]) -> Card | None:
    """The card on layers that are much worse than the median layer of the same dataset."""
    noises = sorted((noise, row.layer_name) for row in rows if (noise := row.noise_db) is not None)
    if not noises:
        return None
    bound = noises[len(noises) // 2][0] - OUTLIER_DB
    found = sum(noise < bound for noise, _ in noises)
    worst, name = noises[0]
    which = f"Worst: {text.shortened_word(text.printable(name), _NAME_CHARS)}, {text.decibel(worst)}. "
    limits = (
        f"Good: no layer more than {OUTLIER_DB:.0f} dB below the median (here: below {text.decibel(bound)})."
    )
    return Card(
        "Outliers", counted(found, "layer"), LOOK if found else GOOD, f"{which * bool(found)}{limits}"
    )


def _kept(report: ReportFigures, rows: Sequence[LayerRow]) -> Card:
    stored = report.totals.stored_nbytes
    kept = sum(row.stored_nbytes for row in rows if not row.is_quantized)
    share = kept / stored if stored else 0.0
    which = f"{text.share(share)} of the stored bytes. Good: at most {_percent(KEPT_GOOD)}."
    return Card(
        "Not quantized",
        counted(len(report.kept_layers), "layer"),
        GOOD if share <= KEPT_GOOD else LOOK,
        which,
    )


def _run(report: ReportFigures) -> Card:
    wall = text.seconds(report.timing.wall_seconds)
    peak = f"Peak memory of a process: {text.nbytes(report.timing.peak_memory_nbytes)}"
    bound = _bound(report)
    is_over = bound is not None and report.timing.peak_memory_nbytes > bound
    earlier = len(report.run.resumed_shards)
    if earlier:
        peak = f"Earlier runs finished {earlier} of {counted(report.totals.shards, 'shard')}. {peak}"
    memory = f"{peak}, above the plan's bound of {text.nbytes(bound)}." if bound and is_over else f"{peak}."
    useful = report.work.efficiency if report.work is not None else None
    if useful is None:
        return Card("Run", wall, LOOK if is_over else FACT, memory)
    said = (
        f"{text.share(useful)} of the workers' time was useful: it was spent on shards that count.{_compiled(report)}",
        f"Good: {_percent(USEFUL_GOOD)} or more.",
        memory,
    )
    return Card("Run", wall, GOOD if useful >= USEFUL_GOOD and not is_over else LOOK, " ".join(said))


def _bound(report: ReportFigures) -> int | None:
    """The plan's memory bound of a process, for all its workers together; None if it is not known."""
    timeline = report.timeline
    if timeline is None or timeline.worker_memory_nbytes is None or not timeline.memory:
        return None
    return timeline.worker_memory_nbytes * max(series.workers for series in timeline.memory)


def _compiled(report: ReportFigures) -> str:
    """Says how much of the time was spent on the kernels, if that is much, as in short runs and in the first run on a
    machine. Receipts do not tell compiling from loading.

    Empty if earlier runs finished some shards, because phases are summed over all runs that made the dataset.
    """
    if report.run.resumed_shards:
        return ""
    phases = report.timing.phases
    part = phases.get("compile", 0.0) / (sum(phases.values()) or 1.0)
    return f" {_percent(part)} of it {text.INTO_KERNELS}." if part >= _COMPILED else ""


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _from(value: float, good: float, bad: float) -> str:
    return GOOD if value >= good else BAD if value < bad else LOOK
