"""Where a worker's results go: the protocol between the worker and what it writes.

A sink decides the bytes of a shard's object and nothing else. Engines, receipts, commits, resuming and publishing are
the same for all sinks, and they hold because of three things that a sink keeps to:

- the object of each attempt has a name of its own (`target.layout.part_path`), so attempts never meet, and what lost is
  found by its name and removed. Exports of a dataset (export/) do without: their files have the names that readers
  expect, appear whole in one step, and are the same whoever writes them;
- nothing but that object is written, and `abort` leaves nothing of it;
- its rows, of which the receipt is made, cover the shard's row blocks, each once and in their order.

What is in the object follows from the shard and what `add` brings, never from the attempt: two attempts write the same.
"""

from __future__ import annotations

from typing import Protocol

from arrowquant_dist.format.record import PartInfo
from arrowquant_dist.plan import RowBlock, Shard
from arrowquant_dist.storage.base import Store
from arrowquant_dist.tensor import QuantizedTensor


class Part(Protocol):
    """One attempt's object while it is written."""

    def add(self, block: RowBlock, quantized: QuantizedTensor) -> None:
        """Stores the shard's next row block. Its arrays are the caller's again on return.

        quantized: codes, scales and zero points; the source's bytes in `codes` where nothing is quantized. A sink of
        decoded values takes `quantized.values_into`. block: what the plan knows of it (layer, place, spec).
        """

    def close(self) -> PartInfo:
        """Ends the object, which is whole and in its place on return; what the receipt says of it."""

    def abort(self) -> None:
        """Deletes the unfinished object. Nothing after `close`."""


class Sink(Protocol):
    """A worker's, for one shard after another; keeps what outlives a shard, as compressors and buffers do."""

    def open_part(self, shard: Shard, attempt: str) -> Part:
        """Begins the shard's object. attempt: in its name. All names, shapes and dtypes of the shard are known here."""


class SinkSpec(Protocol):
    """Says which sink, in a few plain values: a frozen dataclass, which travels to workers with their context."""

    def open(self, store: Store) -> Sink:
        """In the worker, once. store: of the target."""
