"""Norms and biases: layers of one dimension, which are stored as they are, trained in float32."""

from __future__ import annotations

import torch


class TrainedVector:
    """values: float32, a leaf; what it stands for is rounded to the layer's dtype, as it is stored."""

    def __init__(self, stored: torch.Tensor) -> None:
        self.dtype = stored.dtype
        self._stored = stored
        self.leaf = stored.float().clone().requires_grad_()

    def values(self) -> torch.Tensor:
        return self.leaf.to(self.dtype)

    def found(self) -> torch.Tensor:
        """As it is stored."""
        return self.leaf.detach().to(self.dtype).clone()
