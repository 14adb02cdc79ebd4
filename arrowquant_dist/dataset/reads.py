"""Reads bytes of a dataset's objects and counts them; takes them from memory if this thread has read them ahead."""

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

    allocate: allocates the memory for fetched bytes. counter: counts bytes requested from the store. windows: what the
    calling thread has read ahead.
    """

    def __init__(self, store: Store, allocate: Allocate) -> None:
        self._store, self._allocate = store, allocate
        self.counter = ReadCounter()
        self.windows = Windows(None if store.is_near else whole_pages)  # near: few threads read

    def into(self, path: str, offset: int, out: np.ndarray) -> None:
        """Like Store.read_into."""
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
        """Like Store.read_pieces_into; always reads from the store."""
        self.counter.add(out.size)
        self._store.read_pieces_into(path, offset, out, piece_nbytes, seen)

    def chunks_into(self, path: str, offset: int, out: np.ndarray, digests: bytes, nbytes: int) -> int:
        """Like Store.read_chunks_into; always reads from the store."""
        done = self._store.read_chunks_into(path, offset, out, digests, nbytes)
        self.counter.add(done)
        return done

    def fetch(self, path: str, byte_range: ByteRange) -> np.ndarray:
        """The bytes in new memory, or, within `Dataset.reading_together`, as a view of what was read there."""
        held = self.windows.find(path, byte_range)
        if held is not None:
            return held
        memory = self._allocate(byte_range.nbytes)
        self.counter.add(memory.size)
        self._store.read_into(path, byte_range.start, memory)
        return memory

    def fetch_all(self, path: str, gap_nbytes: int, wanted: Sequence[StoredRange]) -> list[np.ndarray]:
        """The stored bytes of each value, uint8: views of what was read within `Dataset.reading_together`, else as
        `fetched` returns them."""
        held = self.windows.find_all(path, wanted)
        return fetched(partial(self.fetch, path), wanted, gap_nbytes) if held is None else held

    def gap_nbytes(self, block: StoredBlock) -> int:
        """The largest gap between a block's values that is read along: small if other ranks read the bytes in between,
        or if everything worth reading at once is in memory already."""
        is_alone = block.is_whole and not self.windows.are_held
        return COALESCE_NBYTES if is_alone else COALESCE_PARTS_NBYTES
