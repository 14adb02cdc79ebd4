"""Bytes of a dataset's objects: counted, and taken from memory where this thread has read them ahead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from arrowquant_dist.arena import Allocate, whole_pages
from arrowquant_dist.dataset.bare import ReadCounter
from arrowquant_dist.dataset.layers import StoredBlock
from arrowquant_dist.dataset.ranges import COALESCE_NBYTES, COALESCE_PARTS_NBYTES, fetched
from arrowquant_dist.dataset.windows import Windows
from arrowquant_dist.format.record import StoredRange
from arrowquant_dist.storage.base import ByteRange, Store


class Reads:
    """Reads of one store. Thread-safe.

    allocate: memory for what is fetched. counter: of bytes asked of the store. windows: what the thread that asks has
    read ahead.
    """

    def __init__(self, store: Store, allocate: Allocate) -> None:
        self._store, self._allocate = store, allocate
        self.counter = ReadCounter()
        self.windows = Windows(None if store.is_near else whole_pages)  # near: few threads read

    def into(self, path: str, offset: int, out: np.ndarray) -> None:
        """As Store.read_into."""
        if self.windows.are_held:
            held = self.windows.find(path, ByteRange(offset, offset + out.size))
            if held is not None:
                out[:] = held
                return
        self.counter.add(out.size)
        self._store.read_into(path, offset, out)

    def pieces_into(
        self, path: str, offset: int, out: np.ndarray, piece_nbytes: int, seen: Callable[[memoryview], None]
    ) -> None:
        """As Store.read_pieces_into, of the store always."""
        self.counter.add(out.size)
        self._store.read_pieces_into(path, offset, out, piece_nbytes, seen)

    def chunks_into(self, path: str, offset: int, out: np.ndarray, digests: bytes, nbytes: int) -> int:
        """As Store.read_chunks_into, of the store always."""
        done = self._store.read_chunks_into(path, offset, out, digests, nbytes)
        self.counter.add(done)
        return done

    def fetch(self, path: str, byte_range: ByteRange) -> np.ndarray:
        """Fresh memory; within `Dataset.reading_together` perhaps a view of what was read there."""
        held = self.windows.find(path, byte_range)
        if held is not None:
            return held
        memory = self._allocate(byte_range.nbytes)
        self.counter.add(memory.size)
        self._store.read_into(path, byte_range.start, memory)
        return memory

    def fetch_all(self, path: str, gap_nbytes: int, wanted: Sequence[StoredRange]) -> list[np.ndarray]:
        """The stored bytes of each, uint8: within `Dataset.reading_together` views of what was read there, else as
        `fetched` has them."""
        held = self.windows.find_all(path, wanted)
        return fetched(partial(self.fetch, path), wanted, gap_nbytes) if held is None else held

    def gap_nbytes(self, block: StoredBlock) -> int:
        """What may be read for nothing between a block's values: little where other ranks read what lies there, and
        where what is worth reading at once is in memory already."""
        is_alone = block.is_whole and not self.windows.are_held
        return COALESCE_NBYTES if is_alone else COALESCE_PARTS_NBYTES
