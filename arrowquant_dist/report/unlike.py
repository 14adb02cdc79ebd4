"""Whether datasets were made from the same model, so that one of them can be called better than another."""

from __future__ import annotations

from collections.abc import Sequence

from arrowquant_dist.errors import counted
from arrowquant_dist.report.headings import headings
from arrowquant_dist.report.layer_rows import LayerRow
from arrowquant_dist.report.reported import Reported
from arrowquant_dist.report.shared_error import energy

_FURTHEST = 0.01  # of a layer's Σw², relative; rounding to 16-bit floats changes it by far less
_SO = "No figure is marked as the best, and there are no pictures."


def unlike(datasets: Sequence[Reported]) -> tuple[str, ...]:
    """A sentence for each dataset that was not made from the same model as the first one, and one that says what
    follows from that; empty if all were made from the same model.

    Datasets count as made from the same model if their layers have the same names and shapes and, for layers that both
    quantize, the same energy of the original weights. If the layers of one are not known, they must have the same
    number of layers and of values.
    """
    columns = headings(datasets)
    first = f"{columns[0].letter} ({columns[0].short})"
    found = [
        f"{column.letter} ({column.short}) is not of the same model as {first}: {why}."
        for column, one in zip(columns[1:], datasets[1:], strict=True)
        if (why := _why(datasets[0], one))
    ]
    return (*found, _SO) if found else ()


def _why(first: Reported, other: Reported) -> str:
    if first.layers is None or other.layers is None:
        ours, theirs = first.report.totals, other.report.totals
        if (ours.layers, ours.params) == (theirs.layers, theirs.params):
            return ""
        has = f"it has {counted(theirs.layers, 'layer')} and {counted(theirs.params, 'value')}"
        return f"{has}, not {ours.layers} and {ours.params}"
    by_place = {(row.layer_name, row.shape): row for row in first.layers}
    pairs = [(by_place.get((row.layer_name, row.shape)), row) for row in other.layers]
    shared = [(mine, row) for mine, row in pairs if mine is not None]
    if len(shared) < max(len(by_place), len(pairs)):
        of = f"{len(shared)} of its {counted(len(pairs), 'layer')}"
        return f"{of} have the same name and shape as one of the other's {len(by_place)}"
    moved = sum(_is_other(mine, row) for mine, row in shared)
    return f"{counted(moved, 'layer')} had other weights before quantization" if moved else ""


def _is_other(mine: LayerRow, row: LayerRow) -> bool:
    ours, theirs = energy(mine), energy(row)
    return ours is not None and theirs is not None and abs(ours - theirs) > _FURTHEST * max(ours, theirs)
