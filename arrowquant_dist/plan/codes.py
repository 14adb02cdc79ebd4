"""The notes of a plan about codes that are kept as the source has them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from arrowquant_dist.checkpoint.source_codes import SourceCodes
from arrowquant_dist.config import NotKept, QuantSpec
from arrowquant_dist.errors import counted, listed
from arrowquant_dist.plan.blocks import RowBlock


def codes_notes(noted: Sequence[str], blocks: Iterable[RowBlock], codes: SourceCodes) -> tuple[str, ...]:
    """The plan's notes about codes, made from the checkpoint's notes. noted: the checkpoint's notes; some of them
    apply only if codes are kept, others only if they are decoded: notes about activations are dropped if all codes
    are decoded."""
    if not noted and not codes:
        return ()
    from arrowquant_dist.checkpoint.quantized.notes import ACTIVATIONS, DECODED

    if not codes:
        return _without(noted, ACTIVATIONS)
    kept: dict[str, list[str]] = {}
    decoded: dict[str, list[str]] = {}
    for block in blocks:
        layer = block.layer
        if block.row_start or not _are_codes(codes.get(layer.name)):
            continue
        found = kept if block.spec.keeps_codes else decoded
        found.setdefault(layer.encoding.label, []).append(layer.name)
    lines = [f"kept as they are, {label}: {_counted(names)}" for label, names in kept.items()]
    lines += [
        f"{DECODED} {label}, since these codes are not to be kept: {listed(names)}"
        for label, names in decoded.items()
    ]
    return (*_without(noted, DECODED), *lines)


def _without(noted: Sequence[str], beginning: str) -> tuple[str, ...]:
    """The notes that do not begin with `beginning`, whether they are about the model or one of its folders."""
    return tuple(note for note in noted if not (note.startswith(beginning) or f"/: {beginning}" in note))


def _are_codes(found: QuantSpec | NotKept | None) -> bool:
    """Whether the layer has codes in the source; layers that a dataset keeps in 16 bits have none."""
    return isinstance(found, NotKept) or (found is not None and found.is_quantized)


def _counted(names: Sequence[str]) -> str:
    return counted(len(names), "layer")
