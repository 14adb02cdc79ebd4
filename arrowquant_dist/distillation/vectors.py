"""Norms and biases: one-dimensional layers, which are stored as they are, trained in float32."""

from __future__ import annotations

import torch


class TrainedVector:
    """A trained vector. leaf: float32; values are rounded to the layer's dtype, in which they are stored."""

    def __init__(self, stored: torch.Tensor) -> None:
        self.dtype = stored.dtype
        self._stored = stored
        self.leaf = stored.float().clone().requires_grad_()

    def values(self) -> torch.Tensor:
        return self.leaf.to(self.dtype)

    def found(self) -> torch.Tensor:
        """The values to store."""
        return self.leaf.detach().to(self.dtype).clone()
