"""Torch modules whose weight can be replaced by a QuantWeight, and the modules that then take their place."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from arrowquant_dist.config import Activations
from arrowquant_dist.modules.embedding import QuantEmbedding
from arrowquant_dist.modules.linear import QuantLinear
from arrowquant_dist.modules.model_methods import put_codes_methods
from arrowquant_dist.modules.weight import QuantWeight

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def can_be_packed(module: torch.nn.Module) -> bool:
    """Returns whether a packed module would do the same as this one. False for subclasses and modules with a `forward`
    of their own, which may compute anything, for modules with hooks, and for an embedding that changes its rows as it
    looks them up."""
    if "forward" in vars(module) or any(getattr(module, name) for name in _HOOKS):
        return False
    if type(module) is torch.nn.Embedding:
        return module.max_norm is None
    return type(module) is torch.nn.Linear


def packed_module(
    module: torch.nn.Module, weight: QuantWeight, activations: Activations | None = None
) -> QuantLinear | QuantEmbedding:
    """Returns a module that does with `weight` what `module` does with its own, sharing its bias. activations: as in
    QuantLinear."""
    packed: QuantLinear | QuantEmbedding
    if isinstance(module, torch.nn.Embedding):
        packed = QuantEmbedding(weight, module.padding_idx)
    else:
        bias = module.get_parameter("bias") if module.bias is not None else None
        packed = QuantLinear(weight, bias, activations)
    return packed.train(module.training)


def replace_modules(root: torch.nn.Module, packed: Mapping[torch.nn.Module, torch.nn.Module]) -> None:
    """Replaces the keys of `packed` by their values everywhere within `root`, and gives models of transformers in it
    methods that handle codes."""
    for parent in [*root.modules()]:
        for name, child in [*parent.named_children()]:
            if child in packed:
                setattr(parent, name, packed[child])
    if packed:
        put_codes_methods(root)
