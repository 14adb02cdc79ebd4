"""A traced model becomes a real one: each layer is read once, in storage order, and goes straight to its places."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, pairwise

import torch

from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.dataset.prefetch import Load, Stream, load_now
from arrowquant_dist.loader.opened import OpenDataset
from arrowquant_dist.loader.parts import Cut
from arrowquant_dist.loader.tensors import as_tensor
from arrowquant_dist.models.placements import Placement, placements_of
from arrowquant_dist.models.traced import Node, Origin, Step, Traced, evaluated, make_changes

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


def fill_slots(slots: Sequence[Slot], changes: Sequence[Step], opened: OpenDataset) -> None:
    """Reads what the slots consist of and puts it there, then makes the changes.

    Takes the memory of the slots, and the budget.

    Raises CorruptWeights, StorageError; MemoryBudgetExceeded where a layer that has to be whole at once does not fit.
    """
    wanted: defaultdict[str, list[Placement]] = defaultdict(list)
    joint: list[Placement] = []
    owners: dict[int, Slot] = {}
    for slot in slots:
        owners[id(slot.tensor)] = slot
        for placement in placements_of(slot.traced.node, slot.tensor):
            if len(placement.sources) == 1:
                wanted[placement.sources[0]].append(placement)
            else:
                joint.append(placement)
    loads = [
        load
        for name, layer in opened.dataset.layers.items()
        for load in _loads(layer, wanted.pop(name, []), owners, opened)
    ]
    for _ in Stream(loads, opened.budget, opened.workers):
        pass
    for placement in joint:
        _place_jointly(placement, opened)
    make_changes(changes, {id(slot.traced): slot.tensor for slot in slots})
    for slot in slots:
        slot.put()


def _loads(
    layer: StoredLayer, placements: list[Placement], owners: Mapping[int, Slot], opened: OpenDataset
) -> Iterator[Load[None]]:
    """Each gives None, when the values that it read are in their places."""
    if not placements:
        return
    if not all(placement.is_plain for placement in placements):
        load = _decoded(layer, None, opened)
        yield load.then(partial(_place, layer.name, placements), _made_nbytes(placements))
        return
    runs = _runs(layer, opened)
    for run in runs:
        load = _decoded(layer, run, opened)
        if run is None:
            yield load.then(partial(_place_whole, placements, owners))
        else:
            yield load.then(partial(_place_rows, placements, run))


def _decoded(layer: StoredLayer, rows: slice | None, opened: OpenDataset) -> Load[torch.Tensor]:
    load = opened.assembler.values(Cut(rows).region(layer, layer.name), layer.dtype)
    return load.then(lambda values: as_tensor(values, layer.dtype))


def _runs(layer: StoredLayer, opened: OpenDataset) -> list[slice | None]:
    """Rows that are read at a time: all (None) where that leaves room for others beside them, else block by block, as
    they are stored, and blocks that are too large in halves."""
    limit = opened.budget.limit_nbytes

    def peak(run: slice | None) -> int:
        return _decoded(layer, run, opened).peak_nbytes

    if not layer.shape or peak(None) <= limit // _SHARE:
        return [None]
    inner = max(1, layer.rows // max(1, layer.shape[0]))
    edges = {block.header.row_start // inner for block in layer.blocks}
    todo = [slice(*edge) for edge in pairwise(sorted({0, *edges, layer.shape[0]}))][::-1]
    runs: list[slice | None] = []
    while todo:
        run = todo.pop()
        if run.stop - run.start > 1 and peak(run) > limit // 2:
            middle = (run.start + run.stop) // 2
            todo += [slice(middle, run.stop), slice(run.start, middle)]
        else:
            runs.append(run)
    return runs


def _place(name: str, placements: Iterable[Placement], values: torch.Tensor) -> None:
    for placement in placements:
        placement.out.copy_(evaluated(placement.value, {name: values}))


def _place_whole(placements: Iterable[Placement], owners: Mapping[int, Slot], values: torch.Tensor) -> None:
    """The first slot that wants just this takes the tensor itself; others get copies."""
    is_taken = False
    for placement in placements:
        owner = owners.get(id(placement.out))
        if owner is not None and not is_taken and placement.out.dtype == values.dtype:
            owner.tensor = values
            is_taken = True
        else:
            placement.out.copy_(values)


def _place_rows(placements: Iterable[Placement], run: slice, values: torch.Tensor) -> None:
    for placement in placements:
        placement.out[run].copy_(values)


def _place_jointly(placement: Placement, opened: OpenDataset) -> None:
    """What needs several layers at once, all of which the budget has to hold beside what is made of them."""
    layers = [opened.dataset.layer(name) for name in placement.sources]
    nbytes = sum(layer.source_nbytes for layer in layers) + _made_nbytes([placement])
    opened.budget.take(nbytes, layers[0].name)
    try:
        values = {layer.name: load_now(_decoded(layer, None, opened), opened.budget) for layer in layers}
        placement.out.copy_(evaluated(placement.value, values))
    finally:
        opened.budget.give(nbytes)


def _made_nbytes(placements: Iterable[Placement]) -> int:
    """At most so much is made on the way to the places, one placement after another."""
    return max(_of_all(placement.value) for placement in placements)


def _of_all(node: Node) -> int:
    if isinstance(node, Origin):
        return 0
    return node.like.nbytes + sum(_of_all(inner) for inner in node.inputs)
