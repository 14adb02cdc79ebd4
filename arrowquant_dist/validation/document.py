"""A validation as one document, which is rendered as Markdown and as HTML."""

from __future__ import annotations

from dataclasses import replace

from arrowquant_dist.errors import counted
from arrowquant_dist.report import text
from arrowquant_dist.report.cards import BAD, GOOD, LOOK, OPEN, Card, output_card, size_against
from arrowquant_dist.report.document import Document, DocumentPart
from arrowquant_dist.report.pictures import noise
from arrowquant_dist.validation import tables
from arrowquant_dist.validation.figures import PASSED, DatasetFigures, Validation
from arrowquant_dist.validation.side_by_side import in_parts

_ADVICE = {
    GOOD: "its outputs are as good as the original's by the bound above; it can be served as it is",
    LOOK: "some of its outputs differ; try it on your own texts, or calibrate it with texts, which adds no bytes",
    BAD: "its outputs are too far off to rely on, whatever its weights look like: calibrate or train it, store "
    "important layers in more bits, or use `size` to choose how each layer is stored",
    OPEN: "its outputs were not measured; measure them before you rely on it",
}


def validation_document(found: Validation) -> Document:
    """The whole report."""
    summary = tables.summary(found)
    parts = (
        DocumentPart("Summary", tables=in_parts(summary, (0, 1, len(summary.headers) - 1))),
        DocumentPart("Environment", tables=(tables.environment(found), tables.model(found))),
        DocumentPart("Compression", tables=(tables.modes(found), tables.efficiency(found))),
        DocumentPart(
            "Accuracy of the weights",
            tables=(
                tables.weights(found),
                tables.by_layer_type(found),
                *(tables.spread(one) for one in found.datasets if one.distribution),
            ),
            pictures=tuple(
                replace(picture, title=f"{picture.title}, {one.name}")
                for one in found.datasets
                if (picture := noise.histogram(one.layers)) is not None
            ),
        ),
        DocumentPart(
            "Accuracy of the outputs", said=_outputs_said(found), tables=in_parts(tables.outputs(found), (0,))
        ),
        DocumentPart("Schemas", tables=(tables.schema(found),)),
        DocumentPart("Speed", tables=(*in_parts(tables.phases(found), (0,)), tables.loading(found))),
        DocumentPart("Memory", said=_memory_said(found), tables=in_parts(tables.memory(found), (0, 1))),
        DocumentPart("Acceptance", tables=(tables.categories(found), tables.acceptance(found))),
        DocumentPart("Conclusions", said=_conclusions(found)),
        DocumentPart("Notes on the figures", notes=tuple((one.name, one.text) for one in found.notes)),
    )
    return Document("Validation report", _lead(found), _cards(found), parts)


def _lead(found: Validation) -> str:
    names = ", ".join(one.name for one in found.datasets)
    return (
        f"{found.source.name} with {names}, compared with {found.targets}; {text.minute(found.started_at)}, "
        f"{text.seconds(found.seconds)} in all"
    )


def _cards(found: Validation) -> tuple[Card, ...]:
    failed = [one for one in found.criteria if one.status != PASSED]
    passed = len(found.criteria) - len(failed)
    accepted = Card(
        "Acceptance",
        f"{passed} of {len(found.criteria)}",
        BAD if failed else GOOD,
        f"{counted(len(failed), 'criterion', 'criteria')} not met." if failed else "Every criterion is met.",
        "not accepted" if failed else "accepted",
    )
    return (accepted, *(_card(one) for one in found.datasets))


def _card(one: DatasetFigures) -> Card:
    """The size of one dataset, with a verdict that its outputs decide. If they were not measured there is none: errors
    of the weights are not enough for a verdict."""
    totals = one.report.totals
    ratios = (totals.compression_vs_fp16, "fp16"), (totals.compression_vs_source, "the source")
    smaller = f"{', '.join(size_against(*one) for one in ratios)}."
    size = text.nbytes(totals.parts_nbytes)
    if one.evaluation is None:
        return Card(one.name, size, OPEN, f"{smaller} Outputs were not measured.")
    outputs = output_card(one.evaluation)
    return Card(one.name, size, outputs.verdict, f"{smaller} Outputs: {outputs.figure}. {outputs.why}")


def _conclusions(found: Validation) -> tuple[str, ...]:
    """Advice on each dataset, by the verdict on its outputs."""
    return tuple(f"{one.name}: {_ADVICE[_card(one).verdict]}" for one in found.datasets)


def _outputs_said(found: Validation) -> tuple[str, ...]:
    reasons = dict.fromkeys(one.no_evaluation for one in found.datasets if one.evaluation is None)
    measured = next((one.evaluation for one in found.datasets if one.evaluation is not None), None)
    said = [f"Not measured: {reason}" for reason in reasons]
    if measured is not None:
        facts = measured.texts
        said.insert(
            0, f"Measured with {counted(facts.texts, 'text')} ({facts.name}) and {measured.architecture}."
        )
    return tuple(said)


def _memory_said(found: Validation) -> tuple[str, ...]:
    uses = (found.source_memory, *(one.memory for one in found.datasets))
    return tuple(dict.fromkeys(f"Not measured: {one.reason}." for one in uses if one.reason))
