"""An embedding whose table stays codes in memory."""

from __future__ import annotations

import torch

from arrowquant_dist.modules import operations
from arrowquant_dist.modules.transforms import is_traced, is_transformed
from arrowquant_dist.modules.weight import CodesLayer, QuantWeight


class QuantEmbedding(CodesLayer):
    """`torch.nn.Embedding` with a QuantWeight: whole numbers [...] → rows [..., embedding_dim] of the weight's dtype.

    Only the rows that are looked up are decoded. weight: the table. padding_idx: kept as an attribute; it has no effect
    on the values.
    """

    def __init__(self, weight: QuantWeight, padding_idx: int | None = None) -> None:
        super().__init__()
        self.weight = weight
        self.num_embeddings, self.embedding_dim = weight.shape
        self.padding_idx = padding_idx

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """Returns the rows [..., embedding_dim] that `indices`, whole numbers [...], select."""
        weight = self.weight
        packed = (weight.codes, weight.scales, weight.zero_points)
        bits, group, columns, dtype = weight.bits, weight.group_size, self.embedding_dim, weight.dtype
        if not is_traced(indices) and is_transformed(indices):
            table = operations.decoded_rows(weight.packed, dtype)
            return torch.nn.functional.embedding(indices, table)
        rows: torch.Tensor = operations.embedding(indices, *packed, bits, group, columns, dtype)
        return rows

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"
