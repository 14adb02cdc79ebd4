"""Reads, verifies and decodes rows of an uncompressed block in steps of a few chunks.

This is for stores where a read costs no round trip: the bytes of a step are still in the CPU's cache when they are
hashed and when they are decoded, and stored bytes only touch the memory of one step. Files are read, not mapped: if a
mapped file were truncated in the meantime, a signal would kill the process, and its bytes could change between their
verification and their use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from arrowquant_dist.arena import Allocate
from arrowquant_dist.dataset.layers import StoredBlock
from arrowquant_dist.dataset.ranges import wanted_ranges, widened
from arrowquant_dist.dataset.reads import Reads
from arrowquant_dist.dataset.values import Values, check_chunks, check_values
from arrowquant_dist.format.digests import CHUNK_NBYTES, DIGEST_NBYTES, chunk_digest
from arrowquant_dist.format.record import BlobRanges, StoredRange
from arrowquant_dist.storage.base import ByteRange

STEP_NBYTES = CHUNK_NBYTES
# A block with at most one chunk of data, and its scales, is read in one step.
_AT_ONCE_NBYTES = STEP_NBYTES + (64 << 10)
GAPS_NBYTES = 16 << 10  # room for the page headers between the values of a row


@dataclass(frozen=True, slots=True)
class BlockReader:
    """Reads one uncompressed block. ranges: those of the block. url: that of its object. reads: what it reads with.
    verify: whether to verify checksums.

    Methods that read raise CorruptWeights if scales are not finite and, with verify, if the checksum differs (before
    any row is returned) or the digest of a chunk differs (before any row of this chunk is returned).
    """

    block: StoredBlock
    ranges: BlobRanges
    url: str
    reads: Reads
    verify: bool

    def steps(self, first: int, stop: int) -> Iterator[tuple[Values, int, int]]:
        """Yields (values, start, end) for rows [first, stop) step by step: values that contain rows [start, end)
        completely, valid until the next step."""
        wide = widened(self.block.header, first, stop, verify=self.verify)
        wanted = wanted_ranges(self.ranges, wide)
        if sum(value.stored_nbytes for value in wanted) <= _AT_ONCE_NBYTES:
            yield self._fetched(wanted, wide.start), first, stop
        else:
            yield from self._steps_of_data(self._without_data(wide), first, stop, wide)

    def values(self, part: ByteRange, allocate: Allocate) -> Values:
        """Bytes `part` of the data, in memory from `allocate`, and the other values. With verify, `part` must be whole
        chunks."""
        values, out = self._without_data(part), allocate(part.nbytes)
        self._read_inside(out, part.start, values)
        return Values(replace(values.blobs, data=out), part.start)

    def raw_into(self, first: int, out: np.ndarray) -> None:
        """Reads unquantized rows from `first` on directly into `out` (uint8), chunk by chunk. Chunks that contain other
        rows as well are read elsewhere and copied."""
        width = self.block.header.row_nbytes
        begin, end = first * width, first * width + out.size
        wide = widened(self.block.header, first, first + out.size // width, verify=self.verify)
        values = self._without_data(wide)
        inside = []
        for start in range(wide.start, wide.stop, STEP_NBYTES):
            stop = min(start + STEP_NBYTES, wide.stop)
            if begin <= start and stop <= end:
                inside += [start, stop]
                continue
            window = np.empty(stop - start, np.uint8)
            self._read_chunks(window, start, values)
            low, high = max(start, begin), min(stop, end)
            out[low - begin : high - begin] = window[low - start : high - start]
        if inside:
            self._read_inside(out[inside[0] - begin : inside[-1] - begin], inside[0], values)

    def _read_inside(self, out: np.ndarray, start: int, values: Values) -> None:
        """Reads the data from byte `start` on into `out`, which must be whole chunks to be verified."""
        digests = values.blobs.chunk_digests.tobytes()
        first = self.ranges.data.offset + start
        if self.verify:
            left = digests[start // CHUNK_NBYTES * DIGEST_NBYTES :]
            done = self.reads.chunks_into(self.block.path, first, out, left, CHUNK_NBYTES)
            out, first, start = out[done:], first + done, start + done
        at = start

        def seen(chunk: memoryview) -> None:
            nonlocal at
            number = at // CHUNK_NBYTES * DIGEST_NBYTES
            if self.verify and chunk_digest(chunk) != digests[number : number + DIGEST_NBYTES]:
                found = np.frombuffer(chunk, np.uint8)
                check_chunks(found, at, values, self.block, self.ranges.data, self.url)
            at += CHUNK_NBYTES

        self.reads.pieces_into(self.block.path, first, out, CHUNK_NBYTES, seen)

    def _steps_of_data(
        self, values: Values, first: int, stop: int, wide: ByteRange
    ) -> Iterator[tuple[Values, int, int]]:
        """`steps` for large data. values: all values but the data. The beginning of a row that the next step completes
        is moved to the front of the memory."""
        width = self.block.header.row_nbytes
        memory = np.empty(STEP_NBYTES + width, np.uint8)
        at, held, done = wide.start, 0, first  # memory[:held] is the data from byte `at` on
        for start in range(wide.start, wide.stop, STEP_NBYTES):
            window = memory[held : held + min(STEP_NBYTES, wide.stop - start)]
            self._read_chunks(window, start, values)
            held += window.size
            complete = min((at + held) // width, stop)
            if complete > done:
                blobs = replace(values.blobs, data=memory[:held])
                yield replace(values, blobs=blobs, start=at), done, complete
                done = complete
            given = min(max(complete, first) * width, at + held)
            rest = at + held - given
            memory[:rest] = memory[held - rest : held]
            at, held = given, rest

    def _read_chunks(self, window: np.ndarray, start: int, values: Values) -> None:
        self.reads.into(self.block.path, self.ranges.data.offset + start, window)
        if self.verify:
            check_chunks(window, start, values, self.block, self.ranges.data, self.url)

    def _without_data(self, wide: ByteRange) -> Values:
        return self._fetched(wanted_ranges(self.ranges, ByteRange(wide.start, wide.start)), wide.start)

    def _fetched(self, wanted: Sequence[StoredRange], start: int) -> Values:
        gap_nbytes = min(self.reads.gap_nbytes(self.block), GAPS_NBYTES)
        values = Values.of(self.reads.fetch_all(self.block.path, gap_nbytes, wanted), start)
        check_values(values, self.block, self.ranges.data, self.url, verify=self.verify)
        return values


def steps_nbytes(row_nbytes: int, ranges: BlobRanges) -> int:
    """Peak memory of a BlockReader. row_nbytes: size of a row of the block's data."""
    small = ranges.scales.nbytes + ranges.zero_points.nbytes + ranges.chunk_digests.nbytes
    return min(ranges.data.nbytes, STEP_NBYTES + row_nbytes) + 2 * small + GAPS_NBYTES
