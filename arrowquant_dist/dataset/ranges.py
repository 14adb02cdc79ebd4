"""Values of a row by plain byte ranges of its part: what the index makes possible, without Parquet."""

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
)  # the same among parts of layers: other ranks read what lies between, and it adds up

Extent = tuple[ByteRange, list[int]]  # what is fetched at once, and which of the wanted values are in it
_NOTHING = np.empty(0, np.uint8)
Fetch = Callable[[ByteRange], np.ndarray]  # fresh uint8 memory with a range of the row's object


def read_values(
    fetch: Fetch, ranges: BlobRanges, part: ByteRange, gap_nbytes: int = COALESCE_NBYTES
) -> Values:
    """Bytes `part` of the row's data, and the whole of its other values, in memory of their own.

    One request where no more than `gap_nbytes` lie between them, as where the row is alone in its group and all of the
    data is wanted. Compressed data is one
    page: all of it is read, and `part` taken from it; none of it where `part` is empty. Raises CorruptWeights, which
    the caller gives layer and URI, where a page does not decompress to its size.
    """
    wanted = wanted_ranges(ranges, part)
    return decompressed(fetched(fetch, wanted, gap_nbytes), wanted, ranges, part)


def fetched(fetch: Fetch, wanted: Sequence[StoredRange], gap_nbytes: int) -> list[np.ndarray]:
    """The stored bytes of each, uint8, as views of what was fetched at once."""
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
    """What `read_values` gives, of the stored bytes of `wanted_ranges(ranges, part)`."""
    if ranges.compression == "none":
        data, *small = stored
    else:
        data, *small = (decompressed_page(page, value) for page, value in zip(stored, wanted, strict=True))
        if part.nbytes < ranges.data.nbytes:  # a copy, so that a few rows do not keep a whole page in memory
            data = data[part.start : part.stop].copy()
    return Values.of((data, *(value.copy() for value in small)), part.start)


def widened(row: RowHeader, first: int, stop: int, *, verify: bool) -> ByteRange:
    """Bytes of rows [first, stop) in `data`; to verify them, with the rest of the chunks that have digests."""
    begin, end = first * row.row_nbytes, stop * row.row_nbytes
    if not verify:
        return ByteRange(begin, end)
    begin = begin // CHUNK_NBYTES * CHUNK_NBYTES
    return ByteRange(begin, min(-(-end // CHUNK_NBYTES) * CHUNK_NBYTES, row.data_nbytes))


def peak_nbytes(ranges: BlobRanges, part: ByteRange) -> int:
    """Memory that `read_values` takes at its peak, its result included."""
    small = sum(value.nbytes for value in ranges) - ranges.data.nbytes
    fetched = fetched_nbytes(ranges, part) + 2 * small
    if ranges.compression == "none" or part.nbytes == 0:
        return fetched
    return fetched + ranges.data.nbytes + (part.nbytes if part.nbytes < ranges.data.nbytes else 0)


def fetched_nbytes(ranges: BlobRanges, part: ByteRange) -> int:
    """Memory that what `read_values` asks for takes, as it is stored."""
    return sum(extent.nbytes for extent, _ in extents_of(wanted_ranges(ranges, part)))


def wanted_ranges(ranges: BlobRanges, part: ByteRange) -> tuple[StoredRange, ...]:
    """Bytes `part` of a row's data (compressed: all of it), and the whole of its other values."""
    data, *small = ranges
    if ranges.compression == "none" or part.nbytes == 0:
        data = StoredRange(data.offset + part.start, part.nbytes, part.nbytes)
    return data, *small


def extents_of(wanted: Sequence[StoredRange], gap_nbytes: int = COALESCE_NBYTES) -> list[Extent]:
    """What to fetch, in one request what is no more than `gap_nbytes` apart. Empty values are in none."""
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
