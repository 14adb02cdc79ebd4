"""Reduces the sums of the slices to statistics of the source's layers, in the form in which OUT has them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from arrowquant_dist.calibration.arrays import ArrayDraft, ArrayFile
from arrowquant_dist.calibration.record import CalibratedLayer
from arrowquant_dist.errors import UnquantizableWeights
from arrowquant_dist.storage.base import Store

if TYPE_CHECKING:
    from arrowquant_dist.models.paths import Paths
    from arrowquant_dist.models.sites import Order, Owner
    from arrowquant_dist.models.watch import Site

SQUARES = ("hessian", "cross")  # of sites and layers; `row_` precedes those of layers stored [in, out]
_RUN_VALUES = 1 << 20


class SlicedSums:
    """Sums of several slices, added in slice order in float64, so that the result does not depend on who made them."""

    def __init__(self, store: Store, paths: Sequence[str]) -> None:
        self._files = [ArrayFile(store, path) for path in paths]
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in self._files:
            self.shapes.update(file.shapes)

    def total(self, key: str) -> np.ndarray:
        [found] = self.runs([key], math.prod(self.shapes[key]))
        return found.reshape(self.shapes[key])

    def runs(self, keys: Sequence[str], most: int = _RUN_VALUES) -> Iterator[np.ndarray]:
        """The values of the total of all `keys`, at most `most` at a time."""
        size = math.prod(self.shapes[keys[0]])
        for start in range(0, size, most):
            stop = min(start + most, size)
            yield self._values(keys, start, stop)

    def _values(self, keys: Sequence[str], start: int, stop: int) -> np.ndarray:
        found = np.zeros(stop - start)
        for key in keys:
            for file in self._files:
                if key in file:
                    found += file.read_values(key, start, stop)
        return found

    def tokens(self, site: Site, part: str = "") -> float:
        """Number of tokens that the inputs of a site are from; with `part`, that this part is from. 0 where there are
        none."""
        key = f"{site.key}/{part}_tokens" if part else f"{site.key}/tokens"
        return float(self.total(key)[0]) if key in self.shapes else 0.0


@dataclass(slots=True)
class PartStatistics:
    """Statistics of a stage's layers. drafts: arrays to write to OUT, made one at a time. layers: what the record says
    of them. unfit: layers whose inputs were seen, but along no axis of theirs, so that no method can use them. strange:
    see Paths.strange."""

    drafts: list[ArrayDraft] = field(default_factory=list)
    layers: list[CalibratedLayer] = field(default_factory=list)
    unfit: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)

    def add(self, layer: str, tokens: float, drafts: Sequence[ArrayDraft]) -> None:
        if drafts:
            self.drafts += drafts
            parts = tuple(draft.name.removeprefix(f"{layer}.") for draft in drafts)
            self.layers.append(CalibratedLayer(layer, round(tokens), parts))


def statistics_of(paths: Paths, order: Order, sums: SlicedSums) -> PartStatistics:
    """Statistics of all layers that `sums` are of: means over tokens, in float32."""
    found = PartStatistics()
    for layer, every in _uses(paths, order, sums).items():
        tables = [site for site, _ in every if site.use == "embedding"]
        if tables:
            _add_counts(found, layer, tables, sums)
        is_product = not tables or layer in paths.tied_heads
        uses = [use for use in every if is_product and use[0].use != "embedding"]
        shape, axes = paths.layers[layer].shape, {owner.inputs for _, owner in uses}
        if not uses:
            continue
        if None in axes or len(axes) > 1:
            found.unfit.append(layer)
        elif any(owner.expert is not None for _, owner in uses):
            _add_experts(found, layer, shape, uses, order, sums)
        else:
            _add_matrix(found, layer, shape, uses, order, sums, is_alone=_is_alone(paths, uses))
    return found


Uses = list[tuple["Site", "Owner"]]


def _uses(paths: Paths, order: Order, sums: SlicedSums) -> dict[str, Uses]:
    """{layer: the sites that use rows of it and whose inputs were seen}, in the order of their use."""
    from arrowquant_dist.models.watch import Site

    seen = {Site.from_key(key.partition("/")[0]) for key in sums.shapes}
    sites = [site for site, leader in order.leader.items() if leader in seen]
    sites += sorted(seen - {*sites}, key=lambda site: (site.slot, site.start))
    found: defaultdict[str, Uses] = defaultdict(list)
    for site in sites:
        for owner in paths.owners(site):
            found[owner.layer].append((site, owner))
    return found


def _is_alone(paths: Paths, uses: Uses) -> bool:
    """Whether the layer has one site and is all of it, so that the site's result is the layer's."""
    return len(uses) == 1 and len(paths.owners(uses[0][0])) == 1


def _add_counts(found: PartStatistics, layer: str, sites: Iterable[Site], sums: SlicedSums) -> None:
    counts = np.sum([sums.total(f"{site.key}/counts") for site in sites], axis=0)
    found.add(layer, float(counts.sum()), [ArrayDraft.of(f"{layer}.counts", counts.astype(np.float32))])


def _add_matrix(
    found: PartStatistics,
    layer: str,
    shape: tuple[int, ...],
    uses: Uses,
    order: Order,
    sums: SlicedSums,
    *,
    is_alone: bool,
) -> None:
    leaders = [*dict.fromkeys(order.leader.get(site, site) for site, _ in uses)]
    tokens = sum(sums.tokens(site) for site in leaders)
    start, drafts = f"{layer}.{_prefix(uses)}", []
    for part in SQUARES:
        if part == "hessian" or sum(sums.tokens(site, part) for site in leaders) == tokens:
            size = sums.shapes[f"{leaders[0].key}/hessian"]
            keys = [f"{site.key}/{part}" for site in leaders]
            drafts.append(_mean(f"{start}{part}", layer, size, sums, keys, tokens))
    site, owner = uses[0]
    key = f"{site.key}/residual"
    has_all = is_alone and owner.is_as_stored and len(drafts) > 1
    if has_all and sums.tokens(site, "residual") == tokens and sums.shapes[key] == shape:
        drafts.append(_mean(f"{start}residual", layer, shape, sums, [key], tokens))
    found.add(layer, tokens, drafts)


def _prefix(uses: Uses) -> str:
    """Prefix of the names of the layer's statistics."""
    return "row_" if uses[0][1].inputs == "rows" else ""


def _mean(
    name: str, layer: str, shape: tuple[int, ...], sums: SlicedSums, keys: Sequence[str], tokens: float
) -> ArrayDraft:
    return ArrayDraft(name, shape, "float32", partial(_means, layer, sums, keys, tokens))


def _means(layer: str, sums: SlicedSums, keys: Sequence[str], tokens: float) -> Iterator[np.ndarray]:
    """Means in runs, float32. Raises UnquantizableWeights, with `layer`, where they are not finite."""
    for run in sums.runs(keys):
        with np.errstate(over="ignore"):
            found = (run / tokens).astype(np.float32)
        if not np.isfinite(found).all():
            message = (
                "what reaches it from the texts is NaN or inf, or its squares are beyond float32; correct the layers "
                "of the source that run before it"
            )
            raise UnquantizableWeights(message, layer=layer)
        yield found


def _add_experts(
    found: PartStatistics, layer: str, shape: tuple[int, ...], uses: Uses, order: Order, sums: SlicedSums
) -> None:
    """Adds statistics of stacked experts, with zeros for experts that no token came to, and `cross` where the tokens of
    both paths could be paired for all experts.

    There is no `residual`: an expert's result is multiplied by the router's weight and added to others before it comes
    to the stream, so a difference of streams is not that of one expert.
    """
    sites = {owner.expert: order.leader.get(site, site) for site, owner in uses if owner.expert is not None}
    tokens = sum(sums.tokens(site) for site in sites.values())
    size = (shape[0], *sums.shapes[f"{next(iter(sites.values())).key}/hessian"])
    drafts = []
    for part in SQUARES:
        if part == "hessian" or all(sums.tokens(site, part) == sums.tokens(site) for site in sites.values()):
            make = partial(_stacked, layer, sums, part, sites, size)
            drafts.append(ArrayDraft(f"{layer}.{_prefix(uses)}{part}", size, "float32", make))
    found.add(layer, tokens, drafts)


def _stacked(
    layer: str, sums: SlicedSums, part: str, sites: dict[int, Site], shape: tuple[int, ...]
) -> Iterator[np.ndarray]:
    nothing = np.zeros(shape[1:], np.float32)
    for expert in range(shape[0]):
        if expert in sites:
            site = sites[expert]
            yield from _means(layer, sums, [f"{site.key}/{part}"], sums.tokens(site))
        else:
            yield nothing
