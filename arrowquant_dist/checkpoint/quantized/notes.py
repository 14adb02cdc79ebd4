"""What a plan tells people of a quantized source: what was decoded, what stays as it is, and what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from arrowquant_dist.checkpoint.quantized.tensors import Tensors
from arrowquant_dist.errors import counted, listed

CODES = "codes of"  # how the reason begins that is said of codes and what belongs to them
DECODED = "decoded from"  # how a note begins that says what values were made of
_INSTEAD = "To quantize the weights, give the model that they were made from"


def found_notes(tensors: Tensors) -> tuple[str, ...]:
    return (*_decoded(tensors), *_kept(tensors.kept), *_left_out(tensors.left_out))


def _decoded(tensors: Tensors) -> list[str]:
    """What is decoded from what."""
    labels = Counter((layer.encoding.label, layer.dtype) for layer in tensors.layers.values())
    return [
        f"{DECODED} {label} to {dtype}: {counted(count, 'layer')}"
        for (label, dtype), count in labels.most_common()
    ]


def _kept(kept: Mapping[str, str]) -> list[str]:
    return [
        f"{listed(names)}: {why}; they stay byte for byte"
        + (f". {_INSTEAD}" if why.startswith(CODES) else "")
        for why, names in _by_reason(kept).items()
    ]


def _left_out(left_out: Mapping[str, str]) -> list[str]:
    return [f"left out of the dataset, {why}: {listed(names)}" for why, names in _by_reason(left_out).items()]


def _by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, why in reasons.items():
        found.setdefault(why, []).append(name)
    return found
