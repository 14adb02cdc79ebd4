"""Reads values of a row as plain byte ranges of its part, without Parquet, which the index makes possible."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from arrowquant_dist.dataset.values import Values
from arrowquant_dist.dataset.zstd_pages import decompressed_page
from arrowquant_dist.format.digests import CHUNK_NBYTES
from arrowquant_dist.format.record import BlobRanges, StoredRange
from arrowquant_dist.format.row import RowHeader
from arrowquant_dist.storage.base import ByteRange

COALESCE_NBYTES = 256 << 10  # reading across such a gap is cheaper than another request
COALESCE_PARTS_NBYTES = (
    2 << 10
)  # the same for parts of layers: other ranks read the bytes in between, which add up

Extent = tuple[ByteRange, list[int]]  # (range that is fetched at once, indices of the wanted values in it)
_NOTHING = np.empty(0, np.uint8)
Fetch = Callable[[ByteRange], np.ndarray]  # returns new uint8 memory with a range of the row's object


def read_values(
    fetch: Fetch, ranges: BlobRanges, part: ByteRange, gap_nbytes: int = COALESCE_NBYTES
) -> Values:
    """Bytes `part` of the row's data, and all of its other values, in memory of their own.

    They take one request if they are no more than `gap_nbytes` apart, as they are if the row is alone in its group and
    all of its data is wanted. Compressed data is one page: it is read completely and `part` is taken from it, or not
    read at all if `part` is empty. Raises CorruptWeights, to which the caller adds layer and URI, if a page does not
    decompress to its size.
    """
    wanted = wanted_ranges(ranges, part)
    return decompressed(fetched(fetch, wanted, gap_nbytes), wanted, ranges, part)


def fetched(fetch: Fetch, wanted: Sequence[StoredRange], gap_nbytes: int) -> list[np.ndarray]:
    """The stored bytes of each value, uint8, as views of what was fetched at once."""
    stored = [_NOTHING] * len(wanted)
    for extent, members in extents_of(wanted, gap_nbytes):
        memory = fetch(extent)
        for i in members:
            start = wanted[i].offset - extent.start
            stored[i] = memory[start : start + wanted[i].stored_nbytes]
    return stored


def decompressed(
    stored: Sequence[np.ndarray], wanted: Sequence[StoredRange], ranges: BlobRanges, part: ByteRange
) -> Values:
    """What `read_values` returns, made from `stored`, the bytes of `wanted`, which is `wanted_ranges(ranges, part)`."""
    if ranges.compression == "none":
        data, *small = stored
    else:
        data, *small = (decompressed_page(page, value) for page, value in zip(stored, wanted, strict=True))
        if part.nbytes < ranges.data.nbytes:  # a copy, so that a few rows do not keep a whole page in memory
            data = data[part.start : part.stop].copy()
    return Values.of((data, *(value.copy() for value in small)), part.start)


def widened(row: RowHeader, first: int, stop: int, *, verify: bool) -> ByteRange:
    """Byte range of rows [first, stop) in `data`; with `verify` it is extended to whole chunks, which have digests."""
    begin, end = first * row.row_nbytes, stop * row.row_nbytes
    if not verify:
        return ByteRange(begin, end)
    begin = begin // CHUNK_NBYTES * CHUNK_NBYTES
    return ByteRange(begin, min(-(-end // CHUNK_NBYTES) * CHUNK_NBYTES, row.data_nbytes))


def peak_nbytes(ranges: BlobRanges, part: ByteRange) -> int:
    """Peak memory of `read_values`, its result included."""
    small = sum(value.nbytes for value in ranges) - ranges.data.nbytes
    fetched = fetched_nbytes(ranges, part) + 2 * small
    if ranges.compression == "none" or part.nbytes == 0:
        return fetched
    return fetched + ranges.data.nbytes + (part.nbytes if part.nbytes < ranges.data.nbytes else 0)


def fetched_nbytes(ranges: BlobRanges, part: ByteRange) -> int:
    """Memory of the stored bytes that `read_values` fetches."""
    return sum(extent.nbytes for extent, _ in extents_of(wanted_ranges(ranges, part)))


def wanted_ranges(ranges: BlobRanges, part: ByteRange) -> tuple[StoredRange, ...]:
    """Ranges of bytes `part` of a row's data (of all of it if compressed) and of all its other values."""
    data, *small = ranges
    if ranges.compression == "none" or part.nbytes == 0:
        data = StoredRange(data.offset + part.start, part.nbytes, part.nbytes)
    return data, *small


def extents_of(wanted: Sequence[StoredRange], gap_nbytes: int = COALESCE_NBYTES) -> list[Extent]:
    """What to fetch, with values that are no more than `gap_nbytes` apart in one request. Empty values are in none."""
    extents: list[Extent] = []
    start = stop = 0
    members: list[int] = []
    for i in sorted(range(len(wanted)), key=[value.offset for value in wanted].__getitem__):
        value = wanted[i]
        if value.stored_nbytes == 0:
            continue
        if not members or value.offset > stop + gap_nbytes:
            if members:
                extents.append((ByteRange(start, stop), members))
            start, stop, members = value.offset, value.offset, []
        stop = max(stop, value.offset + value.stored_nbytes)
        members.append(i)
    if members:
        extents.append((ByteRange(start, stop), members))
    return extents
