"""A table of rows that stays codes in memory."""

from __future__ import annotations

import torch

from arrowquant_dist.modules import operations
from arrowquant_dist.modules.weight import QuantWeight, check_weight


class QuantEmbedding(torch.nn.Module):
    """`torch.nn.Embedding` with a QuantWeight: whole numbers [...] → rows [..., embedding_dim] of the weight's dtype.

    Only the rows that are looked up are decoded. padding_idx: kept for those who ask; it changes no value.
    """

    def __init__(self, weight: QuantWeight, padding_idx: int | None = None) -> None:
        super().__init__()
        check_weight(weight)
        self.num_embeddings, self.embedding_dim = weight.shape
        self.padding_idx = padding_idx
        self.weight = weight

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        rows: torch.Tensor = operations.embedding(
            indices,
            weight.codes,
            weight.scales,
            weight.zero_points,
            weight.bits,
            weight.group_size,
            self.embedding_dim,
            weight.dtype,
        )
        return rows

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"
