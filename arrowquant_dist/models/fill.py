"""Turns a traced model into a real one: each layer is read once, in storage order, straight to its places."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, pairwise

import torch

from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.dataset.prefetch import Load, Stream, load_now
from arrowquant_dist.dataset.region import Region
from arrowquant_dist.loader.memory import decodable_bytes
from arrowquant_dist.loader.parts import Cut
from arrowquant_dist.models.placements import Placement, placements_of
from arrowquant_dist.models.progress import ModelProgress
from arrowquant_dist.models.source import LayerSource
from arrowquant_dist.models.traced import Call, Node, Origin, Traced, evaluated, make_changes

# Divisor of the budget: one read of a layer may take this share, so that others can go on beside it.
_SHARE = 4


@dataclass(slots=True, eq=False)
class Slot:
    """One traced tensor of a model. places: modules that have it, each with its name there; several if it is tied.
    tensor: the tensor that replaces it."""

    traced: Traced
    tensor: torch.Tensor
    places: list[tuple[torch.nn.Module, str]] = field(default_factory=list)

    def put(self) -> None:
        """Puts the tensor in the places of the traced one, as the same kind (parameter or buffer)."""
        tensor = self.tensor
        if isinstance(self.traced, torch.nn.Parameter):
            tensor = torch.nn.Parameter(tensor, requires_grad=self.traced.requires_grad)
        for name, value in vars(self.traced).items():
            if name not in ("node", "step"):
                setattr(tensor, name, value)  # attributes that transformers has set
        for module, name in self.places:
            setattr(module, name, tensor)
        self.tensor = tensor


def zeros_in_one(like: torch.Tensor) -> torch.Tensor:
    """Returns a tensor of the shape and dtype of `like`, on the CPU: zeros that all share one place in memory."""
    return torch.zeros((), dtype=like.dtype).expand(like.shape)


def slots_of(model: torch.nn.Module) -> list[Slot]:
    """Returns every traced tensor of a model. Their replacements only get memory when a Filling is made for them:
    memory allocated for all of a deep model at once and then freed left the allocator with room for the whole model,
    over which it then scattered what was allocated part by part."""
    slots: dict[int, Slot] = {}
    for module in model.modules():
        parameters = module.named_parameters(recurse=False, remove_duplicate=False)
        buffers = module.named_buffers(recurse=False, remove_duplicate=False)
        for name, tensor in chain(parameters, buffers):
            if isinstance(tensor, Traced):
                if id(tensor) not in slots:
                    slots[id(tensor)] = Slot(tensor, zeros_in_one(tensor.node.like))
                slots[id(tensor)].places.append((module, name))
    return [*slots.values()]


@dataclass(frozen=True, slots=True)
class Filled:
    """What one load has put in place: bytes, and the stored name of the layer that they are from."""

    layer: str
    nbytes: int


class Filling:
    """Reads what the slots consist of and puts it in place. Allocates the memory of the slots when it is made.

    nbytes: size in bytes of all values that layers have in the slots.
    """

    def __init__(self, slots: Sequence[Slot], changes: Sequence[Call], source: LayerSource) -> None:
        self._slots, self._changes, self._source = slots, changes, source
        self._wanted: defaultdict[str, list[Placement]] = defaultdict(list)
        self._joint: list[Placement] = []
        for slot in slots:
            like = slot.traced.node.like
            slot.tensor = torch.empty(like.shape, dtype=like.dtype)
            for placement in placements_of(slot.traced.node, slot.tensor):
                if len(placement.sources) == 1:
                    self._wanted[placement.sources[0]].append(placement)
                else:
                    self._joint.append(placement)
        every = chain(self._joint, *self._wanted.values())
        self.nbytes = sum(placement.out.nbytes for placement in every if placement.sources)

    def fill(self, told: ModelProgress) -> None:
        """Reads the layers, then makes the changes. told: called by this thread for values that are in place.

        Takes memory for the slots, and the budget. Raises CorruptWeights, StorageError, and MemoryBudgetExceeded if a
        layer that has to be decoded as a whole does not fit.
        """
        source = self._source
        found = (
            load
            for name, layer in source.layers.items()
            if name in self._wanted
            for load in _loads(layer, self._wanted[name], source)
        )
        stream = Stream(found, source.budget, source.workers)
        try:
            for filled in stream:
                told(filled.layer, filled.nbytes)
        finally:
            stream.close()
            stream.pool.shutdown()  # afterwards no thread decodes into tensors that are given up
        for placement in self._joint:
            _place_jointly(placement, source)
            if placement.sources:
                told(placement.sources[0], placement.out.nbytes)
        make_changes(self._changes, {id(slot.traced): slot.tensor for slot in self._slots})
        for slot in self._slots:
            slot.put()


def _loads(layer: StoredLayer, placements: list[Placement], source: LayerSource) -> Iterator[Load[Filled]]:
    """Yields loads that each put the values they read in their places."""
    whole = Region.whole(layer)
    if not all(placement.is_plain for placement in placements):
        load = source.decoded(whole, layer.dtype)
        yield load.then(partial(_place, layer.name, placements), _made_nbytes(placements))
        return
    direct = next((p for p in placements if decodable_bytes(p.out, layer.dtype) is not None), None)
    if direct is not None:
        load = source.into(whole, direct.out, layer.dtype)
        yield load.then(partial(_copy, layer.name, placements, slice(None), direct))
        return
    for run in _runs(layer, source):
        load = source.decoded(_region(layer, run), layer.dtype)
        yield load.then(partial(_copy, layer.name, placements, run, None))


def _runs(layer: StoredLayer, source: LayerSource) -> list[slice]:
    """Returns runs of rows to decode one at a time, to be cast: all rows if that leaves room for other loads, otherwise
    the stored blocks one by one, with blocks that are too large halved."""
    limit = source.budget.limit_nbytes

    def peak(run: slice) -> int:
        return source.decoded(_region(layer, run), layer.dtype).peak_nbytes

    if not layer.shape:
        return [slice(None)]
    everything = slice(0, layer.shape[0])
    if peak(everything) <= limit // _SHARE:
        return [everything]
    inner = max(1, layer.rows // max(1, layer.shape[0]))
    edges = {block.header.row_start // inner for block in layer.blocks}
    todo = [slice(*edge) for edge in pairwise(sorted({0, *edges, layer.shape[0]}))][::-1]
    runs: list[slice] = []
    while todo:
        run = todo.pop()
        if run.stop - run.start > 1 and peak(run) > limit // 2:
            middle = (run.start + run.stop) // 2
            todo += [slice(middle, run.stop), slice(run.start, middle)]
        else:
            runs.append(run)
    return runs


def _region(layer: StoredLayer, rows: slice) -> Region:
    return Cut(rows).region(layer, layer.name) if layer.shape else Region.whole(layer)


def _place(name: str, placements: Sequence[Placement], values: torch.Tensor) -> Filled:
    for placement in placements:
        placement.out.copy_(evaluated(placement.value, {name: values}))
    return Filled(name, sum(placement.out.nbytes for placement in placements))


def _copy(
    name: str, placements: Iterable[Placement], rows: slice, direct: Placement | None, values: torch.Tensor
) -> Filled:
    """Copies values to the placements. direct: the placement into which they were already decoded."""
    nbytes = 0
    for placement in placements:
        place = placement.out[rows] if placement.out.dim() else placement.out
        nbytes += place.nbytes
        if placement is not direct:
            place.copy_(values)
    return Filled(name, nbytes)


def _place_jointly(placement: Placement, source: LayerSource) -> None:
    """Fills a placement that needs several layers at once. The budget has to hold all of them and what is made of
    them."""
    budget = source.budget
    layers = [source.layers[name] for name in placement.sources]
    nbytes = sum(layer.source_nbytes for layer in layers) + _made_nbytes([placement])
    budget.take(nbytes, " and ".join(placement.sources))
    try:
        reads = {layer.name: source.decoded(Region.whole(layer), layer.dtype) for layer in layers}
        values = {name: load_now(load, budget) for name, load in reads.items()}
        placement.out.copy_(evaluated(placement.value, values))
    finally:
        budget.give(nbytes)


def _made_nbytes(placements: Iterable[Placement]) -> int:
    """Returns a bound on the bytes of intermediate results for the placements, one after another."""
    return max(_of_all(placement.value) for placement in placements)


def _of_all(node: Node) -> int:
    if isinstance(node, Origin):
        return 0
    return node.like.nbytes + sum(_of_all(inner) for inner in node.inputs)
