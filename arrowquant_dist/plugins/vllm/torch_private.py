"""What lazy tensors use of torch beyond its public API.

Written for torch 2.13, whose `Tensor._make_wrapper_subclass` makes a tensor that says to be on a device and has no
memory there; `CAST` is the operator behind `Tensor.to`, and without that name casts read values. Where a torch has no
`_make_wrapper_subclass` any more, a tensor on the meta device is what lazy tensors are made of: it does the
same, but that torch makes helpers (the indices of `weight[[0, 1]]`) on the meta device as well, which have no values;
lazy.py refuses these.
"""

from __future__ import annotations

from typing import TypeVar

import torch

T = TypeVar("T", bound=torch.Tensor)

CAST = "aten._to_copy.default"
_MAKE = "_make_wrapper_subclass"


def without_memory(kind: type[T], view: torch.Tensor, device: torch.device) -> T:
    """A tensor of the class `kind`, as large and strided as `view`, whose functions its __torch_dispatch__ does."""
    make = getattr(torch.Tensor, _MAKE, None)
    if make is None:
        return view.as_subclass(kind)
    offset = view.storage_offset()
    made: T = make(
        kind, view.shape, strides=view.stride(), storage_offset=offset, dtype=view.dtype, device=device
    )
    return made
