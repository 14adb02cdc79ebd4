"""Sets of layers that readers fuse into one: all layers of a set have to be quantized alike, or kept alike.

vLLM multiplies q, k and v at once, also gate and up, and all experts of a block; it does not load a checkpoint in which
such layers have two schemes, or in which only some are quantized. transformers has one scheme for all experts of a
model: from a checkpoint with two it would silently read some experts by the wrong one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Name parts before `.weight` that vLLM's models pack together (`packed_modules_mapping`, `stacked_params_mapping`).
_SETS = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("query", "key", "value"),
    ("w1", "w3"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("in_proj_qkv", "in_proj_z"),
    ("in_proj_b", "in_proj_a"),
    ("wq", "wk", "wv"),
    ("q", "k", "v"),
    ("c_fc_0", "c_fc_1"),
)
_SET_OF = {own: f"{'/'.join(names)}" for names in _SETS for own in names}
_EXPERT = re.compile(r"(?:^|.*\.)experts\.\d+\.")
_EXPERTS = "all experts"


def fused_sets(names: Iterable[str]) -> dict[str, list[str]]:
    """Returns {description of the fused layer: names} for sets of two or more layers, in their order."""
    found: dict[str, list[str]] = {}
    for name in names:
        key = _key(name)
        if key is not None:
            found.setdefault(key, []).append(name)
    return {key: members for key, members in found.items() if len(members) > 1}


def is_expert(name: str) -> bool:
    """Returns whether a layer belongs to one of several experts that tokens are routed to."""
    return _EXPERT.match(name) is not None


def _key(name: str) -> str | None:
    """Returns the description of a layer's set, also for people: `model.layers.0.self_attn.q_proj/k_proj/v_proj`."""
    if not name.endswith(".weight"):
        return None
    if is_expert(name):
        return _EXPERTS
    parent, _, own = name.removesuffix(".weight").rpartition(".")
    members = _SET_OF.get(own)
    return f"{parent}.{members}" if members is not None else None
