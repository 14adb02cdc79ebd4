"""Conversions between decoded values in numpy arrays and torch tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def as_tensor(values: np.ndarray, dtype: str) -> torch.Tensor:
    """Returns `values`, numpy's representation of `dtype`, as a tensor of that dtype over the same memory."""
    import torch

    if dtype == "bfloat16":
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    tensor = torch.from_numpy(values)
    return tensor.view(getattr(torch, dtype)) if dtype.startswith(("float8", "float4")) else tensor


def bytes_of(tensor: torch.Tensor) -> np.ndarray:
    """Returns the tensor's values in C order as uint8, over the same memory where the tensor is contiguous."""
    import torch

    found: np.ndarray = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return found
