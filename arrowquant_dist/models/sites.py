"""Finds the layers of the source that a product is of, and the products that have the same inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from arrowquant_dist.config.patterns import starred
from arrowquant_dist.models.fill import Slot
from arrowquant_dist.models.placements import Placement, placements_of
from arrowquant_dist.models.provenance import row_runs
from arrowquant_dist.models.traced import Derived, Node, Origin, sources_of
from arrowquant_dist.models.watch import Seen, Site

Axis = Literal["columns", "rows"]


@dataclass(frozen=True, slots=True)
class Owner:
    """A layer that has values in a site.

    layer: its stored name. expert: index in the layer's first dimension; None for the whole layer. inputs: which of the
    layer's axes the site's inputs are multiplied with, so that their statistics apply to it: its columns, as in
    nn.Linear, or its rows, as GPT-2 stores them; None if neither. is_as_stored: whether the parameter has these axes in
    the layer's order.
    """

    layer: str
    expert: int | None
    inputs: Axis | None
    is_as_stored: bool


def owners_of(site: Site, slots: Sequence[Slot]) -> list[Owner]:
    """Returns the owners in the order in which they lie in the parameter."""
    slot = slots[site.slot]
    tensor = slot.tensor
    found: list[Owner] = []
    for placement in placements_of(slot.traced.node, tensor):
        first, last = _span(placement.out, tensor)
        if first >= site.start + site.nvalues or last <= site.start:
            continue
        inside = site.start <= first and last <= site.start + site.nvalues
        expert = None
        if not inside:
            expert = _expert(site, placement, first)
        value, is_turned = _as_laid(placement)
        axis = _inputs_axis(site, value, tensor, is_turned=is_turned)
        usable = axis if inside or expert is not None else None
        found += [Owner(name, expert, usable, not is_turned) for name in placement.sources]
    return found


def _span(out: torch.Tensor, whole: torch.Tensor) -> tuple[int, int]:
    first = int(out.storage_offset()) - int(whole.storage_offset())
    reach = sum((size - 1) * stride for size, stride in zip(out.shape, out.stride(), strict=True))
    return first, first + reach + 1


def _expert(site: Site, placement: Placement, first: int) -> int | None:
    out = placement.out
    if out.dim() != 3 or not out.is_contiguous() or out[0].numel() != site.nvalues:
        return None
    number, rest = divmod(site.start - first, site.nvalues)
    return number if rest == 0 else None


def _as_laid(placement: Placement) -> tuple[Node, bool]:
    """Returns the placement's value before any transposition, and whether the parameter has it with the last two axes
    exchanged."""
    value, out = placement.value, placement.out
    is_turned = out.dim() > 1 and out.stride(-1) > out.stride(-2) and out.shape[-1] > 1
    while isinstance(value, Derived) and len(value.inputs) == 1 and _exchanges_axes(value):
        value, is_turned = value.inputs[0], not is_turned
    return value, is_turned


def _exchanges_axes(value: Derived) -> bool:
    """Returns whether the value is its only input with the last two axes exchanged."""
    dims = value.like.dim()
    if dims < 2:
        return False
    given = [each for each in (*value.args[1:], *value.kwargs.values()) if isinstance(each, int)]
    match value.name:
        case "t":
            return True
        case "transpose" | "swapaxes" | "swapdims":
            return sorted(axis % dims for axis in given) == [dims - 2, dims - 1]
    return False


def _inputs_axis(site: Site, value: Node, tensor: torch.Tensor, *, is_turned: bool) -> Axis | None:
    """Returns the axis of the layer `value` along which it has all inputs of the site in their order, or None."""
    axis: Axis = "columns" if (site.use == "linear") != is_turned else "rows"
    shape, inputs = value.like.shape, tensor.shape[-1 if site.use == "linear" else -2]
    if site.use == "embedding" or len(shape) < 2 or shape[-1 if axis == "columns" else -2] != inputs:
        return None
    if isinstance(value, Origin):
        return axis
    is_whole_rows = len({*sources_of(value)}) == 1 and row_runs(value) is not None  # in any order
    return axis if axis == "columns" and is_whole_rows else None


@dataclass(frozen=True, slots=True)
class Stage:
    """Parameters whose inputs do not depend on each other's results. slots: their indices. later: slots that are used
    only after all of these."""

    slots: frozenset[int]
    later: frozenset[int]


@dataclass(frozen=True, slots=True)
class Order:
    """The order in which a part uses its parameters.

    stages: stages in that order. leader: {site: the first site with the same input}. streams: sites whose results are
    added to something. last: the slot of the part's last product, if the part uses it nowhere else. strange: slots that
    are used, but not in a recognized product. token_nbytes: bytes per token of inputs and results of products.
    """

    stages: tuple[Stage, ...]
    leader: dict[Site, Site]
    streams: frozenset[Site]
    last: frozenset[int]
    strange: frozenset[int]
    token_nbytes: float

    def leads(self, site: Site) -> bool:
        """Returns whether the site's inputs are summed, on behalf of all sites with the same inputs."""
        return self.leader.get(site, site) == site


class OrderNotes:
    """Records products as a first batch goes through a part. Keeps their inputs meanwhile, to recognize them."""

    def __init__(self) -> None:
        self._given: list[torch.Tensor] = []
        self._sites: list[list[Site]] = []
        self._slots: list[int] = []  # the slot of each product, in order
        self._streams: set[Site] = set()
        self._used: set[int] = set()
        self._nbytes = 0

    def note(self, seen: Seen) -> None:
        site = seen.site
        self._slots.append(site.slot)
        self._nbytes += seen.made.nbytes
        for given, sites in zip(self._given, self._sites, strict=True):
            if given is seen.given:
                sites.append(site)
                return
        self._given.append(seen.given)
        self._sites.append([site])
        self._nbytes += seen.given.nbytes

    def note_stream(self, seen: Seen, _other: torch.Tensor) -> None:
        self._streams.add(seen.site)

    def note_other(self, slot: int) -> None:
        self._used.add(slot)

    def order(self, slots: Sequence[int], names: Sequence[str], tokens: int) -> Order:
        """Returns the order that was recorded. slots: those of the part. names: one for each slot of the model, by
        which parameters that this batch did not use (experts that are modules of their own) are put with similar ones.
        tokens: number of tokens in the batch."""
        stages: list[set[int]] = []
        leader: dict[Site, Site] = {}
        known: set[int] = set()
        for sites in self._sites:
            for site in sites:
                leader.setdefault(site, sites[0])
            if new := {site.slot for site in sites} - known:
                known |= new
                stages.append(new)
        found = [
            Stage(frozenset(self._with_alike(stage, slots, names)), self._later(stage)) for stage in stages
        ]
        last = {slot for slot in self._slots[-1:] if self._slots.count(slot) == 1}
        strange = self._with_alike(self._used - {*self._slots}, slots, names)
        token_nbytes = self._nbytes / max(1, tokens)
        return Order(
            tuple(found),
            leader,
            frozenset(self._streams),
            frozenset(last),
            frozenset(strange),
            token_nbytes,
        )

    def _later(self, stage: set[int]) -> frozenset[int]:
        last = max(index for index, slot in enumerate(self._slots) if slot in stage)
        return frozenset(self._slots[last:]) - frozenset(self._slots[: last + 1])

    def _with_alike(self, stage: set[int], slots: Sequence[int], names: Sequence[str]) -> set[int]:
        like = {starred(names[slot]) for slot in stage}
        unused = {*slots} - {*self._slots}
        return stage | {slot for slot in unused if starred(names[slot]) in like}
