"""A shard's blocks in batches, the next one on its way while this one is quantized."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from arrowquant_dist.arena import Arena, aligned
from arrowquant_dist.checkpoint.encodings.encoding import IN_PLACE
from arrowquant_dist.checkpoint.reader import SourceReader
from arrowquant_dist.checkpoint.table import Layer
from arrowquant_dist.plan import RowBlock
from arrowquant_dist.worker.clock import Clock

BATCHES_AHEAD = IN_PLACE.batches_ahead  # at most
MIN_BATCH_NBYTES = 16 << 20  # neighbouring small blocks are read together up to this much

Batch = list[RowBlock]
Blocks = Generator[
    tuple[RowBlock, np.ndarray]
]  # each block and its values, uint8, good until the next is asked for


class ReadAhead:
    """For sources over a network: threads read the next batches while the caller works on this one.

    Two of them, so that the requests of one follow those of the other without a pause for the storage's latency; one
    where a layer is made of more than the bytes that are read: its memory would be there twice as well.
    """

    def __init__(self, reader: SourceReader) -> None:
        self._reader = reader
        self._arenas = tuple(Arena() for _ in range(BATCHES_AHEAD + 1))

    def __call__(self, batches: Sequence[Batch], clock: Clock) -> Blocks:
        """The blocks of all batches, in order."""
        costs = (block.layer.encoding.cost for batch in batches for block in batch)
        ahead = min((cost.batches_ahead for cost in costs), default=BATCHES_AHEAD)
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
                if number + ahead < len(batches):  # where the batch before this one was, which is done with
                    reads.append(begin(number + ahead))
                yield from zip(batch, values, strict=True)


class ReadInTurn:
    """For local files: the kernel is told what comes next and reads it ahead; a thread would only take a second CPU."""

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


def batches_of(blocks: Sequence[RowBlock]) -> list[Batch]:
    """Runs of neighbours to read together: up to the bytes of the largest block, or MIN_BATCH_NBYTES."""
    limit = max([MIN_BATCH_NBYTES, *(block.source_nbytes for block in blocks)])
    batches: list[Batch] = []
    nbytes = limit
    for block in blocks:
        if nbytes + block.source_nbytes > limit:
            batches.append([])
            nbytes = 0
        batches[-1].append(block)
        nbytes += block.source_nbytes
    return batches


def _largest_nbytes(batches: Sequence[Batch]) -> int:
    """What reading any of them takes; more for layers that are decoded."""
    return max((sum(aligned(block.source_nbytes) for block in batch) for batch in batches), default=0)


def _slices(batch: Batch) -> list[tuple[Layer, int, int]]:
    return [(block.layer, *block.value_range) for block in batch]
