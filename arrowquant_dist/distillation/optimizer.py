"""Adam for all that is trained; in embeddings it changes only the rows that a step has seen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from arrowquant_dist.distillation.settings import BETAS, DistillSettings
from arrowquant_dist.distillation.student import Student

_RATES_ARE_OF = 0.7  # loss at the beginning for which the rates are given
_LARGEST = 2.0  # maximum factor of the rates, for larger losses
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class Optimizer:
    """Adam with rates in proportion to the loss at the beginning, which fall as the training proceeds."""

    def __init__(self, student: Student, settings: DistillSettings) -> None:
        self._student, self._settings = student, settings
        dense: dict[float, list[torch.Tensor]] = {}  # by rate, since a group is one call, however large
        sparse: dict[float, list[torch.Tensor]] = {}
        rates = settings.rates
        for name, codes in student.matrices.items():
            factor = rates.rows / rates.offsets if name in student.lookups else 1.0
            own = {"offsets": rates.offsets, "log_scales": rates.scales, "zero_points": rates.zero_points}
            for part, leaf in codes.leaves.items():
                to = sparse if student.is_by_rows(name, part) else dense
                to.setdefault(own[part] * factor, []).append(leaf)
        for vector in student.vectors.values():
            dense.setdefault(rates.vectors, []).append(vector.leaf)
        self._optimizers: list[Any] = []
        if dense:
            self._optimizers.append(torch.optim.Adam(_groups(dense), betas=BETAS, fused=True))
        if sparse:
            self._optimizers.append(torch.optim.SparseAdam(_groups(sparse), betas=BETAS))

    def step(self, done: float, *, beginning: float) -> None:
        """Applies and drops the gradients. done: finished part of the training, from 0 to 1. beginning: the loss of
        held-back texts before the first step."""
        factor = min(beginning / _RATES_ARE_OF, _LARGEST) * (1.0 + math.cos(math.pi * min(done, 1.0))) / 2
        for group in self._all_groups():
            group["lr"] = group["first"] * factor
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        for name, codes in self._student.matrices.items():
            lookup = self._student.lookups.get(name)
            if lookup is None:
                codes.bound(self._settings.most_offset)
            elif lookup.seen is not None:
                codes.bound(self._settings.most_offset, lookup.seen)
                lookup.seen = None

    def moments(self) -> dict[str, torch.Tensor]:
        """The moments of each leaf that has any, and its number of steps, by the leaf's name in the student."""
        found: dict[str, torch.Tensor] = {}
        for name, leaf in self._student.leaves:
            for key, value in self._state_of(leaf).items():
                found[f"{name}.{key}"] = torch.as_tensor(value)
        return found

    def put_moments(self, found: Mapping[str, torch.Tensor]) -> None:
        """The inverse of `moments`."""
        for name, leaf in self._student.leaves:
            own = {key: found[f"{name}.{key}"] for key in _MOMENTS if f"{name}.{key}" in found}
            if own:
                optimizer = self._optimizer_of(leaf)
                step: Any = own["step"] if isinstance(optimizer, torch.optim.Adam) else int(own["step"])
                optimizer.state[leaf] = {**own, "step": step}

    def _state_of(self, leaf: torch.Tensor) -> Mapping[str, Any]:
        state: Mapping[str, Any] = self._optimizer_of(leaf).state.get(leaf, {})
        return state

    def _optimizer_of(self, leaf: torch.Tensor) -> Any:
        return next(
            optimizer
            for optimizer in self._optimizers
            if any(leaf is own for group in optimizer.param_groups for own in group["params"])
        )

    def _all_groups(self) -> Iterator[dict[str, Any]]:
        for optimizer in self._optimizers:
            yield from optimizer.param_groups


def _groups(leaves: Mapping[float, list[torch.Tensor]]) -> list[dict[str, Any]]:
    return [{"params": own, "lr": rate, "first": rate} for rate, own in leaves.items()]
