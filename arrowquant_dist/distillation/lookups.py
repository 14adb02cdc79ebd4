"""Embeddings of which a batch needs only some rows, and how they are told from others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from arrowquant_dist.distillation.codes import TrainedCodes
from arrowquant_dist.models.traced import replaced


class Lookup(torch.nn.Module):
    """Replaces an embedding: decodes only the rows that a batch needs, and notes which these were."""

    def __init__(self, codes: TrainedCodes, dtype: torch.dtype) -> None:
        super().__init__()
        self._codes, self._dtype = codes, dtype
        self.seen: torch.Tensor | None = None

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows, places = torch.unique(ids, return_inverse=True)
        if torch.is_grad_enabled():
            self.seen = rows if self.seen is None else torch.unique(torch.cat([self.seen, rows]))
        return torch.nn.functional.embedding(places, self._codes.rows(rows).to(self._dtype))


def used_as_whole(parameters: Mapping[str, torch.Tensor], run: Callable[[], object]) -> set[str]:
    """Names of parameters that `run` uses otherwise than to look up rows, as DeBERTa does with its positions."""
    uses = _Uses(parameters)
    with torch.no_grad(), uses:
        run()
    return uses.found


class _Uses(torch.overrides.TorchFunctionMode):
    """found: names of the tensors that are passed to any function but an embedding."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self._names: dict[int, set[str]] = {}
        for name, tensor in tensors.items():
            self._names.setdefault(id(tensor), set()).add(name)
        self.found: set[str] = set()

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not torch.nn.functional.embedding:
            replaced((args, dict(kwargs)), torch.Tensor, self._note)
        return func(*args, **kwargs)

    def _note(self, tensor: torch.Tensor) -> torch.Tensor:
        self.found |= self._names.get(id(tensor), set())
        return tensor
