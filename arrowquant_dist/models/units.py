"""Splits the sums of a stage into pieces that fit in memory, some of which are made in each pass over the texts.

A sum does not depend on what else is summed in its pass, so the number of passes does not change any statistics.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from arrowquant_dist.models.sites import Order
from arrowquant_dist.models.watch import Site

HESSIAN, CROSS, RESIDUAL, COUNTS, TOKENS = "hessian", "cross", "residual", "counts", "tokens"
_SUM_NBYTES = 8


@dataclass(frozen=True, slots=True)
class Unit:
    """Sums of one kind for one weight. slot: index of the parameter. first, last: the range of its values, a Site's or
    the whole parameter's. part: the kind of sum. nbytes: size of the sum in float64."""

    slot: int
    first: int
    last: int
    part: str
    nbytes: int


class WantedSums:
    """The sums that a pass makes."""

    def __init__(self, units: Iterable[Unit]) -> None:
        self._spans: defaultdict[tuple[int, str], list[range]] = defaultdict(list)
        for unit in units:
            self._spans[unit.slot, unit.part].append(range(unit.first, unit.last))

    def has(self, site: Site, part: str) -> bool:
        return any(site.start in span for span in self._spans.get((site.slot, part), ()))


def units_of(
    order: Order, slots: Iterable[int], tensors: Sequence[torch.Tensor], *, is_sequential: bool
) -> list[Unit]:
    """Returns the sums to make for these slots. tensors: one for each slot of the model, of which only shapes
    matter."""
    sites: defaultdict[int, list[Site]] = defaultdict(list)
    for site in order.leader:
        sites[site.slot].append(site)
    found: list[Unit] = []
    for slot in sorted(slots):
        found += _units(slot, sites[slot], tensors[slot], order, is_sequential=is_sequential)
    return found


def _units(
    slot: int, sites: Sequence[Site], tensor: torch.Tensor, order: Order, *, is_sequential: bool
) -> list[Unit]:
    shape, values = tensor.shape, tensor.numel()
    if len(shape) < 2:
        return []
    found = []
    if any(site.use == "embedding" for site in sites):
        found.append(Unit(slot, 0, values, COUNTS, _SUM_NBYTES * shape[0]))
    if sites and all(site.use == "embedding" for site in sites):
        return found
    if sites and not any(order.leads(site) for site in sites):
        squares: list[str] = []
    else:
        squares = [HESSIAN, CROSS] if is_sequential else [HESSIAN]
    uses = {site.use for site in sites} or {
        "linear",
        "transposed",
    }  # also for an expert that this batch did not reach
    inputs = max(shape[-1] if "linear" in uses else 0, shape[-2] if "transposed" in uses else 0)
    square = _SUM_NBYTES * inputs**2
    step = max(1, values // shape[0] if len(shape) == 3 else values)
    for first in range(0, values, step):
        found += [Unit(slot, first, first + step, part, square) for part in squares]
    if is_sequential and any(site in order.streams for site in sites):
        found.append(Unit(slot, 0, values, RESIDUAL, _SUM_NBYTES * values))
    return found


def passes_of(units: Sequence[Unit], most: int) -> list[tuple[Unit, ...]]:
    """Returns runs of units whose sums take at most `most` bytes together; a larger unit is alone. At least one run."""
    found: list[tuple[Unit, ...]] = []
    taken: list[Unit] = []
    nbytes = 0
    for unit in units:
        if taken and nbytes + unit.nbytes > most:
            found.append(tuple(taken))
            taken, nbytes = [], 0
        taken.append(unit)
        nbytes += unit.nbytes
    return [*found, tuple(taken)]
