"""An overview as a Markdown table, which README links to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tests.benchmarks.overview.figures import Comparison, Measured, Overview, Spot
from tests.benchmarks.table import rate

_MIB = 1 << 20


def markdown(overview: Overview) -> str:
    """Everything that was measured, except the curves, which the picture shows."""
    return "\n".join([*_rates(overview), "", *_accuracy(overview.spots), "", measured_on(overview), ""])


def measured_on(overview: Overview) -> str:
    versions = ", ".join(f"{name} {found}" for name, found in overview.versions.items())
    return (
        f"Measured on {overview.date}, {overview.machine}; {overview.rounds} rounds in which all take turns, medians, "
        f"and in brackets the least and the most; a checkpoint of {overview.params / 1e6:.0f} M parameters; {versions}."
    )


def _rates(overview: Overview) -> Iterator[str]:
    yield "| | this program | beside it | | times as fast |"
    yield "|---|---:|---|---:|---:|"
    part = None
    for row in overview.comparisons:
        if row.part != part:
            part = row.part
            yield f"| **{part}** | | | | |"
        yield f"| {row.name} | {_spread(row.ours, row.unit)} | {row.peer} | {_theirs(row)} | {_ratio(row)} |"


def _theirs(row: Comparison) -> str:
    return row.missing if row.theirs is None else _spread(row.theirs, row.unit)


def _ratio(row: Comparison) -> str:
    ratio = row.ratio
    return "–" if ratio is None else f"**{rate(ratio.median)}×** ({rate(ratio.low)}–{rate(ratio.high)})"


def _spread(found: Measured, unit: str) -> str:
    return f"{rate(found.median)} {unit} ({rate(found.low)}–{rate(found.high)})"


def _accuracy(spots: Sequence[Spot]) -> Iterator[str]:
    yield "| all-MiniLM-L6-v2, the fewest bytes first | by | weights | cosine of sentence embeddings |"
    yield "|---|---|---:|---:|"
    for spot in sorted(spots, key=lambda spot: (spot.nbytes, -spot.cosine)):
        yield f"| {spot.name} | {spot.maker} | {spot.nbytes / 1e6:.2f} MB | {spot.cosine:.4f} |"
