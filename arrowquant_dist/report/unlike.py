"""Whether datasets were made from the same model, so that one of them can be called better than another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from arrowquant_dist.errors import counted, have
from arrowquant_dist.report.headings import Heading, headings
from arrowquant_dist.report.reported import Reported
from arrowquant_dist.report.shared_error import energies

_FURTHEST = 0.01  # of a layer's Σw², relative; rounding to 16-bit floats changes it by far less
_SO = "No figure is marked as the best, and there are no pictures."


@dataclass(frozen=True, slots=True)
class _One:
    """A dataset to judge. energies: of its layers before quantization."""

    column: Heading
    dataset: Reported
    energies: Mapping[str, float]

    @property
    def has_layers(self) -> bool:
        return self.dataset.layers is not None


def unlike(datasets: Sequence[Reported]) -> tuple[str, ...]:
    """A sentence for each dataset that was not made from the same model as the first one, and one that says what
    follows from that; empty if all were made from the same model.

    Datasets count as made from the same model if their layers have the same names and shapes and, for layers that both
    quantize, the same energy of the original weights. If the layers of one are not known, they must have the same
    number of layers and of values. If those of the first dataset are not known, the others are also compared with
    the first dataset like it whose layers are known.
    """
    judged = [
        _One(column, one, energies(one)) for column, one in zip(headings(datasets), datasets, strict=True)
    ]
    standards: list[_One] = []
    told: list[str] = []
    for one in judged:
        differences = [said for standard in standards if (said := _difference(standard, one))]
        told += differences[:1]
        if not standards or (one.has_layers and not standards[-1].has_layers and not differences):
            standards.append(one)
    return (*told, _SO) if told else ()


def _difference(first: _One, one: _One) -> str:
    """A sentence that says why they are not of the same model; empty if they are."""
    why = _why(first, one)
    names = [f"{each.column.letter} ({each.column.short})" for each in (one, first)]
    return f"{names[0]} is not of the same model as {names[1]}: {why}." if why else ""


def _why(first: _One, other: _One) -> str:
    ours, theirs = first.dataset, other.dataset
    if ours.layers is None or theirs.layers is None:
        mine, totals = ours.report.totals, theirs.report.totals
        if (mine.layers, mine.params) == (totals.layers, totals.params):
            return ""
        has = f"it has {counted(totals.layers, 'layer')} and {counted(totals.params, 'value')}"
        return f"{has}, not {mine.layers} and {mine.params}"
    places = {(row.layer_name, row.shape) for row in ours.layers}
    shared = sum((row.layer_name, row.shape) in places for row in theirs.layers)
    if shared < max(len(places), len(theirs.layers)):
        of = f"it has {counted(len(theirs.layers), 'layer')}, the other {len(places)}"
        return f"{of}, and {shared or 'none'} {have(shared or 1)} the same name and shape in both"
    moved = sum(_is_other(first.energies.get(name), found) for name, found in other.energies.items())
    return f"{counted(moved, 'layer')} had other weights before quantization" if moved else ""


def _is_other(ours: float | None, theirs: float) -> bool:
    return ours is not None and abs(ours - theirs) > _FURTHEST * max(ours, theirs)
