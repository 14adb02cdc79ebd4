"""What torch does to tensors from outside: torch.func (vmap, grad, jvp) and derivatives of forward mode.

Kernels and operations of our own know nothing of either: a tangent would be lost without a word. Plain operations of
torch on decoded rows carry both.
"""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

from arrowquant_dist.modules.decoding import decode_packed


def is_traced(values: torch.Tensor) -> bool:
    """Whether somebody looks at what is done instead of having it done."""
    return torch.compiler.is_compiling() or type(values) is not torch.Tensor


def is_transformed(tensor: torch.Tensor | None) -> bool:
    """Whether a tensor carries a tangent, or is one of torch.func's, which have no memory of their own."""
    if tensor is None:
        return False
    try:
        tensor.data_ptr()
    except RuntimeError:
        return True
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def plain_linear(
    values: torch.Tensor,
    packed: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    bias: torch.Tensor | None,
    width: int,
    group: int,
) -> torch.Tensor:
    """As products.multiply, by operations of torch alone; takes the memory of all decoded rows."""
    wide = torch.promote_types(values.dtype, torch.float32)
    rows = decode_packed(*packed, width, group, values.shape[-1]).to(wide)
    whole = None if bias is None else bias.to(wide)
    return torch.nn.functional.linear(values.to(wide), rows, whole).to(values.dtype)
