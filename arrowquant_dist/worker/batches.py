"""Reads a shard's blocks in batches, the next ones while the current one is quantized."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from arrowquant_dist.arena import Arena, aligned
from arrowquant_dist.checkpoint.reader import SourceReader
from arrowquant_dist.checkpoint.table import Layer
from arrowquant_dist.plan import RowBlock
from arrowquant_dist.plan.batches import Batch, read_ahead
from arrowquant_dist.worker.clock import Clock

Blocks = Generator[
    tuple[RowBlock, np.ndarray]
]  # each block and its values, uint8, valid until the next item is requested


class ReadAhead:
    """For sources over a network: threads read the next batches while the caller works on the current one.

    The layers' encodings decide how many batches are read ahead.
    """

    def __init__(self, reader: SourceReader) -> None:
        self._reader = reader
        self._arenas: list[Arena] = []

    def __call__(self, batches: Sequence[Batch], clock: Clock) -> Blocks:
        """The blocks of all batches, in order."""
        ahead = read_ahead(block for batch in batches for block in batch)
        self._arenas += (Arena() for _ in range(len(self._arenas), ahead + 1))
        arenas = self._arenas[: ahead + 1]
        for arena in arenas:
            arena.reserve(_largest_nbytes(batches))
        with ThreadPoolExecutor(ahead, thread_name_prefix="read-ahead") as threads:

            def begin(number: int) -> Future[list[np.ndarray]]:
                return threads.submit(read_batch, self._reader, batches[number], arenas[number % len(arenas)])

            reads = deque(begin(number) for number in range(min(ahead, len(batches))))
            for number, batch in enumerate(batches):
                with clock.phase("read"):
                    values = reads.popleft().result()
                if number + ahead < len(batches):  # into the arena of the previous batch, which is done
                    reads.append(begin(number + ahead))
                yield from zip(batch, values, strict=True)


class ReadInTurn:
    """For local files: the kernel is told what comes next and reads it ahead; a thread would only cost a second CPU."""

    def __init__(self, reader: SourceReader) -> None:
        self._reader = reader
        self._arena = Arena()

    def __call__(self, batches: Sequence[Batch], clock: Clock) -> Blocks:
        """The blocks of all batches, in order."""
        self._arena.reserve(_largest_nbytes(batches))
        for number, batch in enumerate(batches):
            with clock.phase("read"):
                if number + 1 < len(batches):
                    self._reader.announce(_slices(batches[number + 1]))
                values = read_batch(self._reader, batch, self._arena)
            yield from zip(batch, values, strict=True)


def read_batch(reader: SourceReader, batch: Batch, arena: Arena) -> list[np.ndarray]:
    """The values of each block, in memory of `arena`."""
    arena.reset()
    return reader.read(_slices(batch), arena.take)


def _largest_nbytes(batches: Sequence[Batch]) -> int:
    """Memory for the decoded values of the largest batch. Layers that are decoded take more while they are read."""
    return max((sum(aligned(block.source_nbytes) for block in batch) for batch in batches), default=0)


def _slices(batch: Batch) -> list[tuple[Layer, int, int]]:
    return [(block.read_as, *block.value_range) for block in batch]
