"""Weights of a traced model that stay codes: whole rows of layers, put together as transformers puts values
together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from arrowquant_dist.config import Activations
from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.dataset.prefetch import Stream
from arrowquant_dist.dataset.region import Region
from arrowquant_dist.loader.loads import Loads
from arrowquant_dist.machine import give_back_freed_memory
from arrowquant_dist.models.fill import Slot
from arrowquant_dist.models.progress import ModelProgress
from arrowquant_dist.models.provenance import RowRun, row_runs
from arrowquant_dist.models.traced import Call, changed_in_place
from arrowquant_dist.modules.replace import can_be_packed, packed_module, replace_modules
from arrowquant_dist.modules.weight import QuantWeight, is_packable


@dataclass(frozen=True, slots=True)
class CodedSlot:
    """A slot whose values can stay codes, and the runs of rows that it consists of."""

    slot: Slot
    runs: tuple[RowRun, ...]

    @property
    def spans(self) -> dict[str, range]:
        """The rows that are needed of each layer, from the first to the last."""
        starts: dict[str, int] = {}
        stops: dict[str, int] = {}
        for run in self.runs:
            starts[run.layer] = min(run.start, starts.get(run.layer, run.start))
            stops[run.layer] = max(run.stop, stops.get(run.layer, run.stop))
        return {name: range(start, stops[name]) for name, start in starts.items()}


def coded_slots(
    slots: Sequence[Slot], changes: Sequence[Call], layers: Mapping[str, StoredLayer]
) -> list[CodedSlot]:
    """Returns those of `slots` that are used only as weights of plain linear layers and embeddings and consist of rows
    of layers with codes of the same form. layers: by their stored names. changes: in-place changes, such as
    transformers zeroing a padding row; a changed weight has to be decoded."""
    changed = changed_in_place(changes)
    found = []
    for slot in slots:
        if id(slot.traced) not in changed and all(
            name == "weight" and can_be_packed(module) for module, name in slot.places
        ):
            runs = row_runs(slot.traced.node)
            if runs and _are_of_one_form([layers[run.layer] for run in runs], slot.traced.node.like):
                found.append(CodedSlot(slot, runs))
    return found


class Coding:
    """Reads what the slots consist of as codes. nbytes: stored size of codes, scales and zero points."""

    def __init__(self, coded: Sequence[CodedSlot], loads: Loads) -> None:
        self._coded, self._loads = coded, loads.of_codes()
        layers = self._loads.opened.dataset.layers
        spans = [(index, name, rows) for index, each in enumerate(coded) for name, rows in each.spans.items()]
        self._parts = [(index, Region.cut(layers[name], {0: rows})) for index, name, rows in spans]
        self.nbytes = sum(self._loads.nbytes(region) for _, region in self._parts)

    def put(self, model: torch.nn.Module, activations: Activations | None, told: ModelProgress) -> None:
        """Replaces the modules of the slots, whose biases are filled already, by modules that compute with the codes.

        Takes memory for the codes, and the budget. Raises CorruptWeights, StorageError.
        """
        opened = self._loads.opened
        parts: list[dict[str, QuantWeight]] = [{} for _ in self._coded]
        packed: dict[torch.nn.Module, torch.nn.Module] = {}
        read = Stream([self._loads.one(region) for _, region in self._parts], opened.budget, opened.workers)
        try:
            for (index, region), tensor in zip(self._parts, read, strict=True):
                each, name = self._coded[index], region.layer.name
                parts[index][name] = QuantWeight.of(tensor, each.slot.traced.node.like.dtype)
                told(name, self._loads.nbytes(region))
                if len(parts[index]) == len(each.spans):
                    weight = _joined(each, parts[index])
                    parts[index] = {}
                    for module, _ in each.slot.places:
                        packed[module] = packed_module(module, weight, activations)
        finally:
            read.close()
            read.pool.shutdown()
        replace_modules(model, packed)
        give_back_freed_memory()


def _joined(each: CodedSlot, parts: Mapping[str, QuantWeight]) -> QuantWeight:
    rows: list[tuple[QuantWeight, range]] = []
    for run in each.runs:
        first = each.spans[run.layer].start
        rows.append((parts[run.layer], range(run.start - first, run.stop - first)))
    return QuantWeight.joined(rows)


def _are_of_one_form(layers: Sequence[StoredLayer], like: torch.Tensor) -> bool:
    """Returns whether all are matrices of codes with the same bits, columns and group size."""
    if not all(is_packable(layer.quant_type, layer.shape, layer.row_dims) for layer in layers):
        return False
    forms = {(layer.quant_type, layer.columns, _group_size(layer)) for layer in layers}
    return len(forms) == 1 and like.dim() == 2 and like.shape[1] == layers[0].columns


def _group_size(layer: StoredLayer) -> int:
    header = layer.blocks[0].header
    return header.group_size if 0 < header.group_size < layer.columns else layer.columns
