"""The two models of a calibration, the original and the quantized one, side by side, with one part of each in memory.

If the calibration is not sequential, there is only the original.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.dataset.prefetch import load_now
from arrowquant_dist.dataset.region import Region
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.loader.tensors import as_tensor, bytes_of
from arrowquant_dist.machine import give_back_freed_memory
from arrowquant_dist.models.chain import Chain, Inputs
from arrowquant_dist.models.checkpoint import CheckpointLoads
from arrowquant_dist.models.decisions import Decides, Decisions
from arrowquant_dist.models.sites import Order, OrderNotes, Owner, owners_of
from arrowquant_dist.models.subject import Subject, batches_of_one_length, slices_of
from arrowquant_dist.models.sums import TOGETHER, Met, Sums
from arrowquant_dist.models.tokens import TokenizedTexts
from arrowquant_dist.models.traced import sources_of
from arrowquant_dist.models.units import HESSIAN, Unit, WantedSums, units_of
from arrowquant_dist.models.watch import Seen, Site, Watch

_LEAST_READING = 1 << 20
Hidden = tuple[torch.Tensor | None, ...]  # hidden states of one batch, one for each path


@dataclass(frozen=True, slots=True)
class HiddenBatch:
    """One batch. texts: their indices. hidden: what the previous part returned, float32 [texts, tokens, width], for
    each path."""

    texts: Sequence[int]
    hidden: Hidden


class Paths:
    """The paths of a calibration. Several threads may use them if all are at the same part.

    subject: the model. texts: its tokens. is_sequential: whether there is a second, quantized path.
    """

    def __init__(self, subject: Subject, texts: TokenizedTexts, *, is_sequential: bool) -> None:
        self._subject, self._texts = subject, texts
        self.batches = batches_of_one_length(texts.lengths)
        self.slices = slices_of(self.batches, texts.lengths)
        first = texts.inputs(self.batches[-1])  # the shortest
        source: CheckpointLoads = subject.opened.source  # type: ignore[assignment]
        self._source, self._memory_nbytes = source, source.budget.limit_nbytes
        self._chains = [subject.chain(source, first) for _ in range(2 if is_sequential else 1)]
        self._lock = threading.RLock()
        self._at: int | None = None
        self._put: set[str] = set()
        self._orders: dict[int, Order] = {}

    @property
    def parts(self) -> int:
        return self._chains[0].parts

    @property
    def original(self) -> Chain:
        return self._chains[0]

    @property
    def is_sequential(self) -> bool:
        return len(self._chains) > 1

    @property
    def left_over(self) -> tuple[str, ...]:
        """The names of layers that the model has no place for."""
        return self._chains[0].left_over

    def layers_of(self, part: int) -> list[str]:
        """Returns the stored names of the layers in the part, in the order of the model's parameters."""
        chain = self._chains[0]
        found = [
            name for index in chain.slots_of(part) for name in sources_of(chain.slots[index].traced.node)
        ]
        return [*dict.fromkeys(found)]

    def enter(self, part: int) -> None:
        """Fills the part's weights, and frees those of another part as well as the memory that the allocator kept from
        working with it, which would grow by half a megabyte per block. Raises SourceChanged if a file has changed since
        its header was read."""
        with self._lock:
            if self._at == part:
                return
            for chain in self._chains:
                if self._at is not None:
                    chain.empty(self._at)
            self._at = None
            give_back_freed_memory()
            budget = self._source.budget
            budget.limit_nbytes = max(
                self._memory_nbytes - self.weights_nbytes(part), self.reading_nbytes(part), _LEAST_READING
            )
            for chain in self._chains:
                chain.fill(part)
            self._source.reader.confirm()
            self._at = part
            self._put = set()

    def has_put(self, name: str) -> bool:
        """Returns whether the current part has been given these quantized values."""
        with self._lock:
            return name in self._put

    def put_bytes(self, name: str, values: Mapping[str, np.ndarray]) -> None:
        """Gives layers of the quantized path their quantized values. name: identifies the values, which are put only
        once. values: {stored name: uint8, C order, of the source's dtype and shape}."""
        with self._lock:
            if self._at is None or name in self._put:
                return
            layers = self._subject.opened.source.layers
            shaped = {
                layer: as_tensor(
                    found.view(np.dtype(DTYPES[layers[layer].dtype].bits)), layers[layer].dtype
                ).reshape(layers[layer].shape)
                for layer, found in values.items()
            }
            chain = self._chains[-1]
            chain.put(shaped, chain.slots_of(self._at))
            self._put.add(name)

    def inputs(self, batch: int) -> Inputs:
        return self._texts.inputs(self.batches[batch])

    def order(self, part: int, hidden: torch.Tensor | None) -> Order:
        """Returns the order in which the part uses its parameters, found with the shortest texts. hidden: the last
        batch's."""
        with self._lock:
            if part not in self._orders:
                chain, notes = self._chains[0], OrderNotes()
                inputs = self._texts.inputs(self.batches[-1])
                with chain.watched(part, partial(_noting, notes)):
                    chain.run(part, inputs, hidden)
                slots, names = chain.slots_of(part), [_name_of(slot) for slot in chain.slots]
                self._orders[part] = notes.order(slots, names, inputs["input_ids"].numel())
            return self._orders[part]

    def strange(self, order: Order) -> list[str]:
        """Returns the stored names of layers that a part uses in other ways than in recognized products."""
        slots = self._chains[0].slots
        found = (sources_of(slots[index].traced.node) for index in sorted(order.strange))
        return [*dict.fromkeys(name for names in found for name in names)]

    def owners(self, site: Site) -> list[Owner]:
        """Returns the layers of the source that have values in a site."""
        return owners_of(site, self._chains[0].slots)

    def units(self, part: int, order: Order, stage: int | None) -> list[Unit]:
        """Returns the sums to make for a stage; for all stages if `stage` is None."""
        chain = self._chains[0]
        slots = chain.slots_of(part) if stage is None else order.stages[stage].slots
        tensors = [slot.tensor for slot in chain.slots]
        return units_of(order, slots, tensors, is_sequential=self.is_sequential)

    @property
    def tied_heads(self) -> list[str]:
        """The stored names of layers that a causal model uses as both embedding and output head, in the first part and
        in the last."""
        if self.parts == 1 or self._subject.kind.name != "causal":
            return []
        chain = self._chains[0]
        both = chain.head & {*chain.slots_of(0)} & {*chain.slots_of(self.parts - 1)}
        return [name for index in both for name in sources_of(chain.slots[index].traced.node)]

    def head_units(self, part: int, order: Order) -> list[Unit]:
        """Returns the sums to make of the head's inputs along one path; none if the part is not the last one."""
        if part + 1 < self.parts:
            return []
        head = self._chains[0].head
        return [unit for unit in self.units(part, order, None) if unit.slot in head and unit.part == HESSIAN]

    def weights_nbytes(self, part: int) -> int:
        """Returns the bytes of the part's weights, on all paths."""
        chain = self._chains[0]
        return len(self._chains) * sum(chain.slots[index].tensor.nbytes for index in chain.slots_of(part))

    def reading_nbytes(self, part: int) -> int:
        """Returns the bytes that reading a part's weights takes in addition: a layer that is cast is there twice
        more."""
        return max((2 * self.nbytes_of(name) for name in self.layers_of(part)), default=0)

    def nbytes_of(self, layer: str) -> int:
        """Returns the size of a layer in bytes in the source's dtype."""
        stored = self.layers[layer]
        return stored.num_params * DTYPES[stored.dtype].itemsize

    def batch_nbytes(self, order: Order) -> int:
        """Returns the bytes that a worker takes for its current batches besides sums: inputs and results of the part's
        products on all paths, those that wait to be multiplied, and the hidden states of a slice's batches."""
        lengths = self._texts.lengths
        sizes = [sum(lengths[text] for text in batch) for batch in self.batches]
        slices = max(sum(sizes[batch] for batch in batches) for batches in self.slices)
        found = len(self._chains) * (max(sizes) + TOGETHER) * order.token_nbytes
        return int(found + len(self._chains) * slices * self._chains[0].hidden_nbytes)

    def one_path(
        self, part: int, order: Order, batches: Iterable[HiddenBatch], wanted: Iterable[Unit], *, keeps: bool
    ) -> tuple[Sums, list[Hidden]]:
        """Returns the sums of the part's sites and, if `keeps`, what the part returns for each batch."""
        chain = self._chains[0]
        sums = Sums(order, self._rows(chain.slots_of(part)), WantedSums(wanted))
        made: list[Hidden] = []
        ends = self._ends(part, order)
        for batch in batches:
            inputs = self._texts.inputs(batch.texts)
            add = partial(sums.add_product, tokens=inputs["input_ids"].numel())
            with chain.watched(part, partial(_watch, add, None, ends, None)):
                hidden = chain.run(part, inputs, batch.hidden[0])
            if keeps:
                made.append((hidden,))
        return sums, made

    def stage(
        self,
        part: int,
        order: Order,
        stage: int,
        batches: Iterable[HiddenBatch],
        wanted: Iterable[Unit],
    ) -> Sums:
        """Returns the sums of one stage's sites along both paths. Experts get the same tokens on both; see
        decisions.py."""
        own, which = order.stages[stage], WantedSums(wanted)
        sums = Sums(order, self._rows(own.slots), which)
        ends = self._ends(part, order)
        for batch in batches:
            inputs = self._texts.inputs(batch.texts)
            original, quantized = (Met(order, which, own.slots, own.later) for _ in self._chains)
            decisions = Decisions()
            ways = (original, decisions.note), (quantized, decisions.repeat)
            for chain, (met, decides), hidden in zip(self._chains, ways, batch.hidden, strict=True):
                with chain.watched(part, partial(_watch, met.product, met.stream, ends, decides)):
                    chain.run(part, inputs, hidden)
            tokens = inputs["input_ids"].numel()
            sums.add(original, quantized, tokens, are_paired=decisions.are_repeated)
        return sums

    def _ends(self, part: int, order: Order) -> frozenset[int]:
        """Returns the head's slot if it is the last product of the last part: nobody needs the logits."""
        return order.last & self._chains[0].head if part == self.parts - 1 else frozenset()

    def through(self, part: int, batches: Iterable[HiddenBatch]) -> Iterator[Hidden]:
        """Yields what the part returns for each batch, one result for each path."""
        for batch in batches:
            inputs = self._texts.inputs(batch.texts)
            yield tuple(
                chain.run(part, inputs, hidden)
                for chain, hidden in zip(self._chains, batch.hidden, strict=True)
            )

    def source_bytes(self, layer: str) -> np.ndarray:
        """Returns a layer's values as in the source: uint8, C order."""
        source = self._source
        stored = source.layers[layer]
        values = load_now(source.decoded(Region.whole(stored), stored.dtype), source.budget)
        source.reader.confirm()
        return bytes_of(values)

    @property
    def layers(self) -> Mapping[str, StoredLayer]:
        """The layers of the source by their stored names."""
        return self._subject.opened.source.layers

    def _rows(self, slots: Iterable[int]) -> dict[int, int]:
        shapes = {slot: self._chains[0].slots[slot].tensor.shape for slot in slots}
        return {slot: shape[0] if shape else 0 for slot, shape in shapes.items()}


def _watch(
    on_product: Callable[[Seen], None],
    on_sum: Callable[[Seen, torch.Tensor], None] | None,
    ends: frozenset[int],
    decides: Decides | None,
    memory: Mapping[int, int],
) -> Watch:
    return Watch(memory, on_product, on_sum, ends, decides)


def _noting(notes: OrderNotes, memory: Mapping[int, int]) -> Watch:
    return Watch(memory, notes.note, notes.note_stream, on_other=notes.note_other)


def _name_of(slot: Any) -> str:
    """Returns the name of the parameter's first source, which has the number of its block and expert."""
    return f"{next(iter(sources_of(slot.traced.node)), '')}"
