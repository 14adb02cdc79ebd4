"""Figures that may have a target: the key of each in a file of targets, which direction is better, and its value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from arrowquant_dist.errors import counted
from arrowquant_dist.report import text
from arrowquant_dist.report.compare import stored_bits
from arrowquant_dist.report.evaluated import HIGH, LOW
from arrowquant_dist.validation.figures import ACCURACY, COMPRESSION, PERFORMANCE, DatasetFigures

_COMPILING_SECONDS = 1.0  # in less time, kernels are only loaded from their cache


@dataclass(frozen=True, slots=True)
class Measurable:
    """A figure that may have a target.

    better: HIGH or LOW. lowest, highest: bounds of a target. form: formats a value for display. figure: returns the
    value for a dataset, or None if it was not measured; why_not then returns the reason. about: returns what else to
    know about the value; may be empty.
    """

    key: str
    label: str
    category: str
    better: int
    lowest: float
    highest: float
    form: Callable[[float], str]
    figure: Callable[[DatasetFigures], float | None]
    why_not: Callable[[DatasetFigures], str]
    about: Callable[[DatasetFigures], str] = lambda _: ""

    def holds(self, value: float, target: float) -> bool:
        return value > target if self.better == HIGH else value < target

    def shown_target(self, target: float) -> str:
        return f"{'>' if self.better == HIGH else '<'} {self.form(target)}"


def _nothing_quantized(_: DatasetFigures) -> str:
    return "no quantized layer has this figure"


def _no_values(_: DatasetFigures) -> str:
    return "there are no values"


def _not_timed(one: DatasetFigures) -> str:
    shards = counted(one.speed.shards, "shard")
    done = f"an earlier run had finished {one.speed.resumed_shards} of {shards}"
    return f"{done}, so no run made all of them; --overwrite makes them again"


def _compiling(one: DatasetFigures) -> str:
    """A remark for a run that compiled kernels, or loaded many, which makes it slower."""
    seconds = one.speed.worker_phases.get("compile", 0.0)
    if seconds < _COMPILING_SECONDS:
        return ""
    return f"{text.seconds(seconds)} of its workers' time {text.INTO_KERNELS}"


def _not_of_its_kind(kind: str) -> Callable[[DatasetFigures], str]:
    def why(one: DatasetFigures) -> str:
        return one.no_evaluation or f"only {kind} have this figure"

    return why


def _weights(figure: str, of: str) -> Callable[[DatasetFigures], float | None]:
    def read(one: DatasetFigures) -> float | None:
        accuracy = one.report.accuracy
        stat = getattr(accuracy, figure) if accuracy is not None else None
        return float(getattr(stat, of)) if stat is not None else None

    return read


def _output_cosine(one: DatasetFigures) -> float | None:
    found = one.evaluation.embeddings if one.evaluation is not None else None
    return found.cosine_mean if found is not None else None


def _next_tokens(figure: str) -> Callable[[DatasetFigures], float | None]:
    def read(one: DatasetFigures) -> float | None:
        found = one.evaluation.next_tokens if one.evaluation is not None else None
        return float(getattr(found, figure)) if found is not None else None

    return read


def _ratio(value: float) -> str:
    return text.times(value)


def _cosine(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")


def _bits(value: float) -> str:
    return f"{value:.2f} bits"


MEASURABLES = (
    Measurable(
        "compression_vs_fp16",
        "compression against fp16",
        COMPRESSION,
        HIGH,
        0.0,
        1e3,
        _ratio,
        lambda one: one.report.totals.compression_vs_fp16,
        _no_values,
    ),
    Measurable(
        "compression_vs_source",
        "compression against the source",
        COMPRESSION,
        HIGH,
        0.0,
        1e3,
        _ratio,
        lambda one: one.report.totals.compression_vs_source,
        _no_values,
    ),
    Measurable(
        "stored_bits",
        "stored bits a value",
        COMPRESSION,
        LOW,
        0.0,
        64.0,
        _bits,
        lambda one: stored_bits(one.report),
        _no_values,
    ),
    Measurable(
        "weight_cosine",
        "weight cosine, mean",
        ACCURACY,
        HIGH,
        -1.0,
        1.0,
        _cosine,
        _weights("cosine", "mean"),
        _nothing_quantized,
    ),
    Measurable(
        "weight_cosine_min",
        "weight cosine, min",
        ACCURACY,
        HIGH,
        -1.0,
        1.0,
        _cosine,
        _weights("cosine", "min"),
        _nothing_quantized,
    ),
    Measurable(
        "precision_loss",
        "precision loss, mean (1 − cosine)",
        ACCURACY,
        LOW,
        0.0,
        2.0,
        lambda value: f"{100 * value:.3g} %",
        _weights("precision_loss", "mean"),
        _nothing_quantized,
    ),
    Measurable(
        "output_cosine",
        "embedding cosine, mean",
        ACCURACY,
        HIGH,
        -1.0,
        1.0,
        _cosine,
        _output_cosine,
        _not_of_its_kind("encoders of texts"),
    ),
    Measurable(
        "perplexity_excess",
        "excess of perplexity",
        ACCURACY,
        LOW,
        -1.0,
        1e6,
        lambda value: f"{100 * value:.3g} %",
        _next_tokens("excess"),
        _not_of_its_kind("causal language models"),
    ),
    Measurable(
        "kl_divergence",
        "KL divergence of next tokens, mean",
        ACCURACY,
        LOW,
        0.0,
        1e6,
        lambda value: f"{text.small(value)} nats",
        _next_tokens("kl_mean"),
        _not_of_its_kind("causal language models"),
    ),
    Measurable(
        "top1_agreement",
        "top-1 agreement",
        ACCURACY,
        HIGH,
        0.0,
        1.0,
        text.share,
        _next_tokens("top1_agreement"),
        _not_of_its_kind("causal language models"),
    ),
    Measurable(
        "quantize_seconds",
        "quantization",
        PERFORMANCE,
        LOW,
        0.0,
        1e9,
        text.seconds,
        lambda one: one.speed.seconds,
        _not_timed,
        _compiling,
    ),
    Measurable(
        "load_seconds",
        "loading, verified",
        PERFORMANCE,
        LOW,
        0.0,
        1e9,
        text.seconds,
        lambda one: one.load.seconds,
        _no_values,
    ),
)
BY_KEY = {one.key: one for one in MEASURABLES}
