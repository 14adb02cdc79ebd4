"""Detects what torch does to tensors from outside: torch.func (vmap, grad, jvp) and forward-mode derivatives.

Our own kernels and operations do not support either: a tangent would be lost silently. Plain operations of torch on
decoded rows support both.
"""

from __future__ import annotations

import torch
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from arrowquant_dist.modules.decoding import decode_packed
from arrowquant_dist.modules.packed_rows import PackedRows


def is_traced(values: torch.Tensor) -> bool:
    """Returns whether operations are being recorded, instead of or while they run. torch.jit.trace and make_fx do not
    see kernels that write into memory, and would record their results as constants."""
    if torch.compiler.is_compiling() or type(values) is not torch.Tensor:
        return True
    is_tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return is_tracing or get_proxy_mode() is not None


def is_transformed(tensor: torch.Tensor | None) -> bool:
    """Returns whether a tensor carries a tangent or is watched by torch.func: tensors of torch.func have no memory of
    their own, and while it differentiates, even a view of a constant is one of them."""
    if tensor is None:
        return False
    try:
        tensor.detach().data_ptr()
    except RuntimeError:
        return True
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def plain_linear(values: torch.Tensor, packed: PackedRows, bias: torch.Tensor | None) -> torch.Tensor:
    """Computes products.multiply with operations of torch alone; takes memory for all decoded rows."""
    wide = torch.promote_types(values.dtype, torch.float32)
    rows = decode_packed(packed).to(wide)
    whole = None if bias is None else bias.to(wide)
    return torch.nn.functional.linear(values.to(wide), rows, whole).to(values.dtype)
