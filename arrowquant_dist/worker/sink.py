"""Where a worker's results go: the protocol between the worker and what it writes.

A sink decides the bytes of a shard's object and nothing else. Engines, receipts, commits, resuming and publishing are
the same for all sinks, and they work because every sink guarantees three things:

- The object of each attempt has a name of its own (`target.layout.part_path`), so attempts never collide, and losing
  attempts are found by their names and removed. Exports of a dataset (export/) do without: their files have the names
  that readers expect, appear whole in one step, and are the same whoever writes them.
- Nothing but that object is written, and `abort` leaves nothing of it.
- Its rows, from which the receipt is made, cover the shard's row blocks, each once and in their order.

The object's content follows from the shard and what `add` is given, never from the attempt: two attempts write the
same.
"""

from __future__ import annotations

from typing import Protocol

from arrowquant_dist.format.record import PartInfo
from arrowquant_dist.plan import RowBlock, Shard
from arrowquant_dist.storage.base import Store
from arrowquant_dist.tensor import QuantizedTensor


class Part(Protocol):
    """The object of one attempt while it is written."""

    def add(self, block: RowBlock, quantized: QuantizedTensor) -> None:
        """Stores the shard's next row block. The caller may reuse the arrays when this returns.

        quantized: codes, scales and zero points; if nothing is quantized, `codes` has the source's bytes. A sink of
        decoded values uses `quantized.values_into`. block: the plan's description of it (layer, place, spec).
        """

    def close(self) -> PartInfo:
        """Completes the object, which is whole and in its place on return; returns its description for the receipt."""

    def abort(self) -> None:
        """Deletes the unfinished object. Does nothing after `close`."""


class Sink(Protocol):
    """Opens parts for one worker, shard after shard; keeps what outlives a shard, such as compressors and buffers."""

    def open_part(self, shard: Shard, attempt: str) -> Part:
        """Begins the shard's object. attempt: id that its name contains. All names, shapes and dtypes of the shard
        are known here."""


class SinkSpec(Protocol):
    """Describes a sink by a few plain values: a frozen dataclass that travels to workers with their context."""

    def open(self, store: Store) -> Sink:
        """Opens the sink, once per worker. store: the target's."""
