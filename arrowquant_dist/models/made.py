"""Models whose weights are known to be made of certain layers, so that other weights can be made of other values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.models.build import Built
from arrowquant_dist.models.traced import Node, Origin, changed_in_place


@dataclass(frozen=True, slots=True, eq=False)
class MadeTensor:
    """A tensor of a model, and the node that says how it is made of layers. is_changed: whether it was changed in place
    afterwards."""

    tensor: torch.Tensor
    node: Node
    is_changed: bool = False


@dataclass(frozen=True, slots=True)
class FilledModel:
    """A filled model. made: each of its tensors that layers have filled. left_over: layers that it has no place for."""

    model: Any
    made: tuple[MadeTensor, ...]
    left_over: tuple[str, ...] = ()


def made_of(built: Built) -> list[MadeTensor]:
    """Returns how each tensor of a filled model was made."""
    changed = changed_in_place(built.changes)
    return [MadeTensor(slot.tensor, slot.traced.node, id(slot.traced) in changed) for slot in built.slots]


def plain_origin(layer: StoredLayer) -> Origin:
    """Returns the node of a tensor that is an unchanged layer."""
    like = torch.empty(layer.shape, dtype=getattr(torch, layer.dtype), device="meta")
    return Origin(layer.name, like, lambda name: name != layer.name, [])
