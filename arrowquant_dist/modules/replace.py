"""Modules of torch that may have a QuantWeight instead of their weight, and what takes their place then."""

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
    """Whether a packed module does what this one does. Not of subclasses and of modules that were given another
    `forward`, which compute what they like, of modules with hooks, nor of an embedding that changes its rows as it
    looks them up."""
    if "forward" in vars(module) or any(getattr(module, name) for name in _HOOKS):
        return False
    if type(module) is torch.nn.Embedding:
        return module.max_norm is None
    return type(module) is torch.nn.Linear


def packed_module(
    module: torch.nn.Module, weight: QuantWeight, activations: Activations | None = None
) -> QuantLinear | QuantEmbedding:
    """What does with `weight` what `module` does with its own. The bias is the module's own. activations: as
    QuantLinear has them."""
    packed: QuantLinear | QuantEmbedding
    if isinstance(module, torch.nn.Embedding):
        packed = QuantEmbedding(weight, module.padding_idx)
    else:
        bias = module.get_parameter("bias") if module.bias is not None else None
        packed = QuantLinear(weight, bias, activations)
    return packed.train(module.training)


def replace_modules(root: torch.nn.Module, packed: Mapping[torch.nn.Module, torch.nn.Module]) -> None:
    """Puts the values of `packed` in the place of its keys, wherever these are within `root`, and methods that know of
    codes on the models of transformers there."""
    for parent in [*root.modules()]:
        for name, child in [*parent.named_children()]:
            if child in packed:
                setattr(parent, name, packed[child])
    if packed:
        put_codes_methods(root)
