"""A traced model becomes a real one: each layer is read once, in storage order, and goes straight to its places."""

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
from arrowquant_dist.loader.loads import Loads
from arrowquant_dist.loader.memory import decodable_bytes
from arrowquant_dist.loader.parts import Cut
from arrowquant_dist.models.placements import Placement, placements_of
from arrowquant_dist.models.traced import Call, Node, Origin, Traced, evaluated, make_changes

# Of the budget: what one read of a layer may take, so that others go on beside it.
_SHARE = 4


@dataclass(slots=True, eq=False)
class Slot:
    """One traced tensor of a model. places: the modules that have it, and under which names; several where it is tied.
    tensor: what takes its place."""

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
                setattr(tensor, name, value)  # what transformers has noted there
        for module, name in self.places:
            setattr(module, name, tensor)


def slots_of(model: torch.nn.Module) -> list[Slot]:
    """Every traced tensor of a model. What takes their places has no values yet, and no memory until it has."""
    slots: dict[int, Slot] = {}
    for module in model.modules():
        parameters = module.named_parameters(recurse=False, remove_duplicate=False)
        buffers = module.named_buffers(recurse=False, remove_duplicate=False)
        for name, tensor in chain(parameters, buffers):
            if isinstance(tensor, Traced):
                if id(tensor) not in slots:
                    like = tensor.node.like
                    slots[id(tensor)] = Slot(tensor, torch.empty(like.shape, dtype=like.dtype))
                slots[id(tensor)].places.append((module, name))
    return [*slots.values()]


def fill_slots(slots: Sequence[Slot], changes: Sequence[Call], loads: Loads) -> None:
    """Reads what the slots consist of and puts it there, then makes the changes.

    Takes the memory of the slots, and the budget. Raises CorruptWeights, StorageError; MemoryBudgetExceeded where a
    layer that has to be whole at once does not fit.
    """
    wanted: defaultdict[str, list[Placement]] = defaultdict(list)
    joint: list[Placement] = []
    for slot in slots:
        for placement in placements_of(slot.traced.node, slot.tensor):
            if len(placement.sources) == 1:
                wanted[placement.sources[0]].append(placement)
            else:
                joint.append(placement)
    opened = loads.opened
    found = (
        load
        for name, layer in opened.dataset.layers.items()
        if name in wanted
        for load in _loads(layer, wanted[name], loads)
    )
    stream = Stream(found, opened.budget, opened.workers)
    try:
        for _ in stream:
            pass
    finally:
        stream.close()
        stream.pool.shutdown()  # no thread decodes into what is given up
    for placement in joint:
        _place_jointly(placement, loads)
    make_changes(changes, {id(slot.traced): slot.tensor for slot in slots})
    for slot in slots:
        slot.put()


def _loads(layer: StoredLayer, placements: list[Placement], loads: Loads) -> Iterator[Load[None]]:
    """Each gives None, when the values that it read are in their places."""
    whole = Region.whole(layer)
    if not all(placement.is_plain for placement in placements):
        load = loads.decoded(whole, layer.dtype)
        yield load.then(partial(_place, layer.name, placements), _made_nbytes(placements))
        return
    direct = next((p for p in placements if decodable_bytes(p.out, layer.dtype) is not None), None)
    if direct is not None:
        others = [placement for placement in placements if placement is not direct]
        yield loads.into(whole, direct.out, layer.dtype).then(partial(_copy, others, slice(None)))
        return
    for run in _runs(layer, loads):
        yield loads.decoded(_region(layer, run), layer.dtype).then(partial(_copy, placements, run))


def _runs(layer: StoredLayer, loads: Loads) -> list[slice]:
    """Rows that are decoded at a time, to be cast: all where that leaves room for others beside them, else block by
    block, as they are stored, and blocks that are too large in halves."""
    limit = loads.opened.budget.limit_nbytes

    def peak(run: slice) -> int:
        return loads.decoded(_region(layer, run), layer.dtype).peak_nbytes

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


def _place(name: str, placements: Iterable[Placement], values: torch.Tensor) -> None:
    for placement in placements:
        placement.out.copy_(evaluated(placement.value, {name: values}))


def _copy(placements: Iterable[Placement], rows: slice, values: torch.Tensor) -> None:
    for placement in placements:
        (placement.out[rows] if placement.out.dim() else placement.out).copy_(values)


def _place_jointly(placement: Placement, loads: Loads) -> None:
    """What needs several layers at once, all of which the budget has to hold beside what is made of them."""
    budget = loads.opened.budget
    layers = [loads.opened.dataset.layer(name) for name in placement.sources]
    nbytes = sum(layer.source_nbytes for layer in layers) + _made_nbytes([placement])
    budget.take(nbytes, " and ".join(placement.sources))
    try:
        reads = {layer.name: loads.decoded(Region.whole(layer), layer.dtype) for layer in layers}
        values = {name: load_now(load, budget) for name, load in reads.items()}
        placement.out.copy_(evaluated(placement.value, values))
    finally:
        budget.give(nbytes)


def _made_nbytes(placements: Iterable[Placement]) -> int:
    """At most so much is made on the way to the places, one placement after another."""
    return max(_of_all(placement.value) for placement in placements)


def _of_all(node: Node) -> int:
    if isinstance(node, Origin):
        return 0
    return node.like.nbytes + sum(_of_all(inner) for inner in node.inputs)
