"""The notes of a plan about a quantized source: what was decoded, what stays as it is, and what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from arrowquant_dist.checkpoint.quantized.names import WEIGHT
from arrowquant_dist.checkpoint.quantized.schemes import Schemes
from arrowquant_dist.checkpoint.quantized.tensors import Tensors
from arrowquant_dist.errors import counted, listed

CODES = "codes of"  # beginning of the reason for which codes, and what belongs to them, are kept
DECODED = "decoded from"  # beginning of a note that says what values were decoded from
ACTIVATIONS = "activations become"  # beginning of a note that matters only if codes are kept
_INSTEAD = "To quantize the weights, use the model that they were made from"


def found_notes(tensors: Tensors, schemes: Schemes) -> tuple[str, ...]:
    told = (*_decoded(tensors), *_kept(tensors.kept), *_left_out(tensors.left_out))
    return (*told, *_activations(tensors, schemes))


def _activations(tensors: Tensors, schemes: Schemes) -> list[str]:
    """What happens to activations while the source runs, which a dataset does not record."""
    found: dict[str, list[str]] = {}
    for layer in tensors.layers.values():
        module = layer.name.removesuffix(WEIGHT)
        found.setdefault(schemes.activations(module), []).append(module)
    is_given_back = [*found] == ["int8"]  # an export has one setting for all modules
    found.pop("", [])
    beside = "; `export --activations int8` adds the activations" if is_given_back else ""
    return [
        f"{ACTIVATIONS} {dtype} too while the source runs, which a dataset does not record: {listed(modules)}. "
        f"Exports quantize the weights alone{beside}"
        for dtype, modules in found.items()
    ]


def _decoded(tensors: Tensors) -> list[str]:
    """What is decoded from which format."""
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
