"""How far the weights of a dataset are from the original's, and how far its outputs are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from arrowquant_dist.reduce.figures import ReportFigures
from arrowquant_dist.report import text
from arrowquant_dist.report.evaluation import Evaluation
from arrowquant_dist.report.pictures.svg import WIDTH, Picture, box, drawing, line, words

_TITLE = "Error of the weights and of the outputs"
_LEFT, _RIGHT, _BAR, _ROW, _HEAD = 2.0, WIDTH - 2.0, 8.0, 34.0, 4.0
_TEXTS_CHARS = 22
_MOST = 3  # evaluations at most
_LEAST = 1e-9  # the error that rounding alone may cause


@dataclass(frozen=True, slots=True)
class Distance:
    """An error. what: name of the figure. value: 0 if nothing differs. tone: `of-weights` or `of-outputs`."""

    what: str
    value: float
    tone: str


def errors_of_outputs(report: ReportFigures, evaluations: Sequence[Evaluation]) -> Picture | None:
    """A bar for each error on a logarithmic scale. Of the evaluations the newest three are shown. None if there are no
    evaluations or the error of the weights is not known."""
    cosine = report.accuracy.cosine if report.accuracy is not None else None
    if not evaluations or cosine is None:
        return None
    found = [
        Distance("weights: 1 − cosine, mean over layers", 1 - cosine.mean, "of-weights"),
        Distance("weights: 1 − cosine, worst layer", 1 - cosine.min, "of-weights"),
        *(distance for one in evaluations[-_MOST:] for distance in _of_outputs(one)),
    ]
    low, high = _decades([one.value for one in found])
    height = _HEAD + _ROW * len(found) + 14
    parts = [*_grid(low, high, height - 14)]
    for index, one in enumerate(found):
        top = _HEAD + _ROW * index
        room = (math.log10(max(one.value, _LEAST)) - low) / (high - low) * (_RIGHT - _LEFT)
        parts += [
            words(_LEFT, top + 12, one.what),
            words(_RIGHT, top + 12, text.small(one.value if one.value > _LEAST else 0.0), "axis", "end"),
            box(_LEFT, top + 17, max(room, 0.0), _BAR, one.tone),
        ]
    figures = "; ".join(f"{one.what}: {text.small(one.value)}" for one in found)
    legend = (("of-weights", "weights"), ("of-outputs", "outputs"))
    caption = (
        "From one line to the next, the error is ten times as large. The error of the weights does not tell whether "
        "the outputs are good enough: the same error may cost one model little and another one everything."
    )
    return Picture(_TITLE, drawing(_TITLE, height, parts, figures), legend, caption)


def _of_outputs(found: Evaluation) -> Iterator[Distance]:
    name = text.shortened_word(found.texts.name, _TEXTS_CHARS)
    own, tokens = found.embeddings, found.next_tokens
    if own is not None:
        yield Distance(f"embeddings: 1 − cosine, mean ({name})", 1 - own.cosine_mean, "of-outputs")
        yield Distance(f"embeddings: 1 − cosine, worst ({name})", 1 - own.cosine_min, "of-outputs")
    if tokens is not None:
        yield Distance(f"next tokens: other first choice ({name})", 1 - tokens.top1_agreement, "of-outputs")
        yield Distance(f"next tokens: KL, nats ({name})", tokens.kl_mean, "of-outputs")


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """The exponents of the powers of ten around `values`, at least one apart."""
    logs = [math.log10(max(value, _LEAST)) for value in values]
    low = math.floor(min(logs))
    return low, max(math.ceil(max(logs)), low + 1)


def _grid(low: int, high: int, bottom: float) -> Iterator[str]:
    """A vertical line for each power of ten, and labels below the lines."""
    step = max(1, math.ceil((high - low) / 5))
    for power in range(low, high + 1):
        x = _LEFT + (power - low) / (high - low) * (_RIGHT - _LEFT)
        yield line(x, _HEAD, x, bottom, "grid")
        if (power - low) % step == 0:
            anchor = "start" if power == low else "end" if power == high else "middle"
            yield words(x, bottom + 13, f"{10.0**power:g}", "axis", anchor)
