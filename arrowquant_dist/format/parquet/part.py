"""Writes a part file: V2 rows in the order in which they come, a page per value, and records where each value is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import xxhash
from isal import isal_zlib

from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.format.compression import ZstdFrames
from arrowquant_dist.format.parquet import pages
from arrowquant_dist.format.record import BlobRanges, PartInfo, RowRecord, StoredRange
from arrowquant_dist.format.row import BLOB_COLUMNS, COLUMNS, BlobColumn, Blobs, RowHeader, StoredRow
from arrowquant_dist.metrics import ErrorSums
from arrowquant_dist.storage.base import ObjectWriter

BIG_VALUE_NBYTES = 1 << 20  # rows with as much data get a row group of their own
GROUP_NBYTES = 4 << 20  # smaller ones share a row group of about this much data
ALIGNMENT_NBYTES = 64  # big uncompressed values begin at multiples of it


@dataclass(frozen=True, slots=True, eq=False)
class _PendingRow:
    """A row that waits to be written, with its blobs as bytes. position: index of the row in the part. record: makes
    the RowRecord from the row's group, its index in the group, and its ranges."""

    position: int
    header: RowHeader
    blobs: Blobs[memoryview]
    record: Callable[[int, int, BlobRanges], RowRecord]


@dataclass(frozen=True, slots=True, eq=False)
class _Page:
    """A page with one value of a blob column.

    head: everything before the body. body: the bytes that a StoredRange describes. raw_nbytes: size of the page before
    compression, header included.
    """

    head: bytes
    body: memoryview
    raw_nbytes: int


class Frames(Protocol):
    """A compressor of values, such as ZstdFrames."""

    def compress(self, prefix: bytes, value: memoryview) -> memoryview: ...


class WritesParts(Protocol):
    """A place to which parts are written, such as a Store."""

    def url(self, path: str) -> str: ...

    def open_writer(self, path: str) -> ObjectWriter: ...


class PartWriter:
    """Writes one part file front to back; nothing is ever read back, so object stores need no second pass.

    store, path: where the part is written. compression: `zstd` or `none`, for the blob columns; small columns are not
    compressed. frames: the compressor, which a worker reuses from part to part. Memory beyond the row given to `add`:
    4 MiB of waiting small rows and, with zstd, the largest value once more.

    Uncompressed values of 1 MiB and more begin at multiples of 64 bytes, with zeros before their column chunk, as other
    writers pad row groups. The operating system copies a file at 10.5 GB/s into memory whose address equals the file's
    offset modulo 32, as that of tensors then does, and at 7.5 GB/s into other memory (AMD Zen 4, one thread).
    """

    def __init__(self, store: WritesParts, path: str, compression: str, frames: Frames | None = None) -> None:
        if compression not in pages.CODECS:
            raise InvalidConfig(f"compression {compression!r} is not known; use one of {[*pages.CODECS]}")
        self._path, self._compression = path, compression
        self._frames = (frames or ZstdFrames()) if compression == "zstd" else None
        self._hash = xxhash.xxh3_128()
        self._groups: list[pages.RowGroup] = []
        self._records: dict[int, RowRecord] = {}
        self._pending: list[_PendingRow] = []
        self._pending_nbytes = 0
        self._count = 0
        self._url = store.url(path)
        self._sink = store.open_writer(path)
        self._write(pages.MAGIC)

    def add(
        self,
        row: StoredRow,
        *,
        source_nbytes: int,
        method: str,
        kept_reason: str | None,
        errors: ErrorSums | None,
    ) -> None:
        """Stores a row, whose arrays the caller may reuse on return. The other arguments go into its record.

        Raises StorageError, and InvalidConfig for a value that Parquet cannot hold (2 GiB).
        """

        def record(group: int, place: int, ranges: BlobRanges) -> RowRecord:
            return RowRecord(
                header=row.header,
                ranges=ranges,
                source_nbytes=source_nbytes,
                row_group=group,
                row_in_group=place,
                method=method,
                kept_reason=kept_reason,
                errors=errors,
            )

        blobs = self._blobs(row)
        pending = _PendingRow(self._count, row.header, blobs, record)
        self._count += 1
        if row.blobs.data.nbytes >= BIG_VALUE_NBYTES:
            self._write_group([pending])
            return
        self._pending.append(pending)
        self._pending_nbytes += sum(blob.nbytes for blob in blobs)
        if self._pending_nbytes >= GROUP_NBYTES:
            self._flush()

    def close(self) -> PartInfo:
        """Writes the waiting rows and the footer. After a StorageError no part is left behind."""
        try:
            self._flush()
            self._write(pages.footer(self._groups, _created_by()))
            nbytes = self._sink.tell()
            self._sink.close()
        except BaseException:
            self.abort()
            raise
        records = tuple(self._records[i] for i in range(self._count))
        return PartInfo(self._path, nbytes, f"xxh3_128:{self._hash.hexdigest()}", records)

    def abort(self) -> None:
        """Deletes the unfinished file."""
        self._pending.clear()
        self._sink.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.abort()  # nothing after `close`

    def _blobs(self, row: StoredRow) -> Blobs[memoryview]:
        """The row's values as bytes. Those of small rows are copied, because these rows wait for others."""
        blobs = [_bytes(values, column) for values, column in zip(row.blobs, BLOB_COLUMNS, strict=True)]
        if max(blob.nbytes for blob in blobs) > pages.MAX_VALUE_NBYTES:
            message = "one row of a dataset holds less than 2 GiB; set run.block_bytes lower"
            raise InvalidConfig(message, layer=row.header.layer_name, uri=self._url)
        if row.blobs.data.nbytes < BIG_VALUE_NBYTES:
            blobs = [memoryview(bytes(blob)) for blob in blobs]
        return Blobs(*blobs)

    def _flush(self) -> None:
        rows, self._pending, self._pending_nbytes = self._pending, [], 0
        if rows:
            self._write_group(rows)

    def _write_group(self, rows: list[_PendingRow]) -> None:
        ranges: list[dict[str, StoredRange]] = [{} for _ in rows]
        chunks = []
        for column in COLUMNS:
            start, name = self._sink.tell(), column.name
            if isinstance(column, BlobColumn):
                raw_nbytes = 0
                for row, found in zip(rows, ranges, strict=True):
                    blob = getattr(row.blobs, name)
                    one = self._page(blob)
                    if len(rows) == 1:  # a chunk may begin anywhere, a page only where the last one ends
                        start = self._pad(one)
                    found[name] = self._write_page(one, blob.nbytes)
                    raw_nbytes += one.raw_nbytes
                nbytes = self._sink.tell() - start
                chunks.append(
                    pages.ColumnChunk(name, start, nbytes, raw_nbytes, len(rows), self._compression)
                )
            else:
                page, chunk = pages.small_page(column, [getattr(row.header, name) for row in rows])
                self._write(page)
                chunks.append(replace(chunk, offset=start))
        group = len(self._groups)
        self._groups.append(pages.RowGroup(len(rows), tuple(chunks)))
        for place, (row, found) in enumerate(zip(rows, ranges, strict=True)):
            where = BlobRanges(**found, compression=self._compression)
            self._records[row.position] = row.record(group, place, where)

    def _page(self, blob: memoryview) -> _Page:
        """The page of a value. ISA-L computes its CRC-32 at 31 GB/s on one core; zlib, with the same result, at 4."""
        prefix = pages.blob_prefix(blob.nbytes)
        raw_nbytes = len(prefix) + blob.nbytes
        if self._frames is None:
            crc = isal_zlib.crc32(blob, isal_zlib.crc32(prefix))
            header = pages.page_header(1, raw_nbytes, raw_nbytes, crc)
            return _Page(header + prefix, blob, len(header) + raw_nbytes)
        body = self._frames.compress(prefix, blob)
        header = pages.page_header(1, raw_nbytes, body.nbytes, isal_zlib.crc32(body))
        return _Page(header, body, len(header) + raw_nbytes)

    def _pad(self, page: _Page) -> int:
        """Returns where the page begins, after writing a few zeros if they are needed to align a big value."""
        if self._frames is None and page.body.nbytes >= BIG_VALUE_NBYTES:
            self._write(bytes(-(self._sink.tell() + len(page.head)) % ALIGNMENT_NBYTES))
        return self._sink.tell()

    def _write_page(self, page: _Page, nbytes: int) -> StoredRange:
        """Writes a page and returns where its value is. nbytes: size of the value."""
        self._write(page.head)
        offset = self._sink.tell()
        self._write(page.body)
        return StoredRange(offset, page.body.nbytes if nbytes else 0, nbytes)

    def _write(self, data: bytes | memoryview) -> None:
        self._hash.update(data)
        self._sink.write(data)


def _bytes(values: np.ndarray, column: BlobColumn) -> memoryview:
    """The values as bytes, without a copy if they are contiguous and of the column's dtype."""
    return np.ascontiguousarray(values, column.dtype).data.cast("B") if values.size else memoryview(b"")


@cache
def _created_by() -> str:
    try:
        return f"arrowquant-dist version {version('arrowquant-dist')}"
    except PackageNotFoundError:  # run from a checkout
        return "arrowquant-dist version 0"
