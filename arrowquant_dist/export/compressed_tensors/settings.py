"""The `quantization_config` of the output's config.json: the minimum that transformers and vLLM load."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from arrowquant_dist.export.compressed_tensors.fused import is_expert
from arrowquant_dist.export.compressed_tensors.schemes import LinearScheme

_METHOD = "compressed-tensors"
HEADS = ("lm_head", "embed_out")  # vLLM has no Linear for these
_OTHERS = ("quantization_config", "compression_config", "quantization")  # settings of the dataset's source


def quantization_config(
    schemes: Mapping[str, LinearScheme], kept: Iterable[str], tied: Iterable[str] = ()
) -> dict[str, Any]:
    """Returns the settings. schemes: that of each quantized Linear, by the module's name. kept: names of modules that
    may be Linear but are not quantized, in order. tied: names of heads that are not stored.

    A single scheme applies to every `Linear` that is not in `ignore`, so that modules may have other names in a reader
    than in the checkpoint, as they do. Several schemes are told apart by name. vLLM does not consider a head a Linear:
    a quantized head is named.
    """
    groups: dict[LinearScheme, list[str]] = {}
    for name, scheme in schemes.items():
        groups.setdefault(scheme, []).append(name)
    ordered = sorted(groups.items(), key=_order)
    if len(ordered) == 1:
        [(scheme, names)] = ordered
        heads = [name for name in names if name.rpartition(".")[2] in HEADS]
        targets = [[*heads, "Linear"]]
    else:
        targets = [_patterns(names, schemes, scheme) for scheme, names in ordered]
    formats = {scheme.format for scheme, _ in ordered}
    return {
        "quant_method": _METHOD,
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{index}": scheme.config_group(named)
            for index, ((scheme, _), named) in enumerate(zip(ordered, targets, strict=True))
        },
        "ignore": list(dict.fromkeys([*kept, *tied])),
    }


def _order(group: tuple[LinearScheme, list[str]]) -> tuple[bool, int, str]:
    """Returns a sort key: the experts' group first, then by size. transformers gives experts the first group with an
    expression that contains `experts`, which an expression for `shared_experts` in another group does too."""
    scheme, names = group
    return not any(map(_is_of_expert, names)), -len(names), scheme.label


def _is_of_expert(name: str) -> bool:
    return is_expert(f"{name}.weight")


def _patterns(names: list[str], schemes: Mapping[str, LinearScheme], scheme: LinearScheme) -> list[str]:
    """Returns targets that match these names and none of another scheme: an expression for layers whose names differ
    only in numbers, and exact names where the expression would match others too."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(_kind(name), []).append(name)
    others = {_kind(name) for name, other in schemes.items() if other != scheme}
    targets: list[str] = []
    for kind, members in kinds.items():
        is_alone = len(members) == 1 and not _is_of_expert(members[0])
        targets += members if kind in others or is_alone else [f"re:{kind}$"]
    return targets


def _kind(name: str) -> str:
    """Returns an expression for the name with any numbers in place of its own."""
    return r"\.".join(r"\d+" if piece.isdigit() else re.escape(piece) for piece in name.split("."))


def changed_config(config: Mapping[str, Any], settings: Mapping[str, Any] | None, dtype: str | None) -> bytes:
    """Returns the config.json of the output. settings: its `quantization_config`; None if nothing is quantized. That of
    the dataset's source is removed. dtype: of the weights, if the config does not give one."""
    out = {key: value for key, value in config.items() if key not in _OTHERS}
    if dtype is not None:
        out["dtype"] = dtype
    if settings is not None:
        out["quantization_config"] = dict(settings)
    return (json.dumps(out, indent=2, ensure_ascii=False) + "\n").encode()
