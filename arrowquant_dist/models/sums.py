"""What is summed up of inputs as they go by: products of some batches in float32, their sums in float64."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import torch

from arrowquant_dist.models.sites import Order, Site
from arrowquant_dist.models.watch import Enough, Seen

_TOGETHER = 1024  # tokens that wait for one product: batches of short texts have a few dozen
HESSIAN, CROSS, RESIDUAL, COUNTS, TOKENS = "hessian", "cross", "residual", "counts", "tokens"


class Met:
    """What one path meets in one batch at the sites of a stage: inputs, of sites that lead, and what the results of
    sites are added to (the residual stream, where that is what they are added to).

    slots: of which sites are looked at. later: those at which nothing of them can come any more. Raises Enough there.
    """

    def __init__(self, order: Order, slots: frozenset[int], later: frozenset[int] = frozenset()) -> None:
        self._order, self._slots, self._later = order, slots, later
        self.inputs: defaultdict[Site, list[torch.Tensor]] = defaultdict(list)
        self.streams: defaultdict[Site, list[torch.Tensor]] = defaultdict(list)

    def product(self, seen: Seen) -> None:
        site = Site.of(seen)
        if site.slot in self._later:
            raise Enough
        if site.slot in self._slots and self._order.leads(site):
            self.inputs[site].append(seen.given)

    def stream(self, seen: Seen, other: torch.Tensor) -> None:
        site = Site.of(seen)
        if site.slot in self._slots and site.use == "linear":
            self.streams[site].append(other.clone())  # what is added to in place has other values later


class Sums:
    """Sums over tokens, by site: `hessian` Σ x xᵀ [in, in], `counts` [rows] of a table, `tokens` [1]; of two paths
    besides `cross` Σ x x̃ᵀ and `residual` Σ (r − r̃) x̃ᵀ, each with the tokens that it is of. x, r: the original's input
    and what its result is added to; x̃, r̃: the quantized path's, which the others are of then.

    Tokens are paired by their place. Of what is routed (experts), where the paths may not send the same tokens, there
    is no `cross`. rows: {slot: rows of its table}.
    """

    def __init__(self, order: Order, rows: Mapping[int, int]) -> None:
        self._order, self._rows = order, rows
        self._sums: dict[str, np.ndarray] = {}
        self._waiting: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def add_product(self, seen: Seen, tokens: int) -> None:
        """Of one path, as it goes by. tokens: of the batch."""
        site = Site.of(seen)
        if site.slot in self._rows and self._order.leads(site):
            self._add(site, seen.given, tokens)

    def add(self, original: Met, quantized: Met, tokens: int) -> None:
        """Of two paths, a batch of so many tokens."""
        for site, given in quantized.inputs.items():
            for one in given:
                self._add(site, one, tokens)
            twins = original.inputs.get(site, [])
            if site.use == "linear" and len(twins) == len(given):
                for twin, one in zip(twins, given, strict=True):
                    self._pair(site, CROSS, twin, one, tokens)
        for site, streams in quantized.streams.items():
            given = quantized.inputs.get(self._order.leader.get(site, site), [])
            others = original.streams.get(site, [])
            if len(streams) == len(others) == len(given):
                for stream, other, one in zip(streams, others, given, strict=True):
                    self._pair(site, RESIDUAL, other - stream, one, tokens)

    def finished(self) -> dict[str, np.ndarray]:
        """{site/part: sum}, float64."""
        for key in [*self._waiting]:
            self._multiply(key)
        return self._sums

    def _add(self, site: Site, given: torch.Tensor, tokens: int) -> None:
        if site.use == "embedding":
            counted = torch.bincount(given.reshape(-1), minlength=self._rows[site.slot]).double()
            if 0 < given.numel() < tokens and tokens % given.numel() == 0:
                counted *= tokens // given.numel()  # positions, which all texts of a batch share
            self._sum(f"{site.key}/{COUNTS}", counted.numpy())
            return
        flat = _flat(given)
        self._wait(f"{site.key}/{HESSIAN}", flat, flat)
        self._sum(f"{site.key}/{TOKENS}", np.array([float(len(flat))]))

    def _pair(self, site: Site, part: str, one: torch.Tensor, other: torch.Tensor, tokens: int) -> None:
        first, second = _flat(one), _flat(other)
        if len(first) == len(second) == tokens:
            self._wait(f"{site.key}/{part}", first, second)
            self._sum(f"{site.key}/{part}_{TOKENS}", np.array([float(tokens)]))

    def _wait(self, key: str, first: torch.Tensor, second: torch.Tensor) -> None:
        """Until there are so many tokens that one product of them costs little more than their own memory."""
        waiting = self._waiting.setdefault(key, [])
        waiting.append((first, second))
        if sum(len(one) for one, _ in waiting) >= _TOGETHER:
            self._multiply(key)

    def _multiply(self, key: str) -> None:
        waiting = self._waiting.pop(key)
        first = torch.cat([one for one, _ in waiting])
        second = first if waiting[0][0] is waiting[0][1] else torch.cat([other for _, other in waiting])
        self._sum(key, (first.T @ second).double().numpy())

    def _sum(self, key: str, values: np.ndarray) -> None:
        if key in self._sums:
            self._sums[key] += values
        else:
            self._sums[key] = values


def _flat(values: torch.Tensor) -> torch.Tensor:
    return values.detach().reshape(-1, values.shape[-1])
