"""The parts of torch that lazy tensors use beyond its public API.

Written for torch 2.13, whose `Tensor._make_wrapper_subclass` makes a tensor that claims to be on a device and has no
memory there. `CAST` is the operator behind `Tensor.to`; under another name, casts would read values. In a torch without
`_make_wrapper_subclass`, lazy tensors are made from a tensor on the meta device, which works the same, except that
torch then also makes helpers (the indices of `weight[[0, 1]]`) on the meta device, where they have no values; lazy.py
refuses these.
"""

from __future__ import annotations

from typing import TypeVar

import torch

T = TypeVar("T", bound=torch.Tensor)

CAST = "aten._to_copy.default"
_MAKE = "_make_wrapper_subclass"


def without_memory(kind: type[T], view: torch.Tensor, device: torch.device) -> T:
    """Returns a `kind` with the size and strides of `view`, whose operations go to its __torch_dispatch__."""
    make = getattr(torch.Tensor, _MAKE, None)
    if make is None:
        return view.as_subclass(kind)
    offset = view.storage_offset()
    made: T = make(
        kind, view.shape, strides=view.stride(), storage_offset=offset, dtype=view.dtype, device=device
    )
    return made
