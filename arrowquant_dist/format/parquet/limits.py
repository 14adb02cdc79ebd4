"""Limits on what a Parquet file from an untrusted source may cost, checked before Arrow gets it and while Arrow reads.

A few bytes of Parquet can stand for gigabytes: a page states its decompressed size, a run of equal values how often it
repeats, a footer how many row groups there are, and Arrow allocates memory for all of it first. So the footer is
checked before Arrow parses it, and Arrow reads through a `GuardedReader`, which inspects the header of each page that
passes through, and refuses a page that would exceed what its column may take.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

import pyarrow as pa

from arrowquant_dist.config.sizes import rounded_size
from arrowquant_dist.errors import counted
from arrowquant_dist.format.parquet.compact import I32, I64, LIST, STRUCT, Compact
from arrowquant_dist.format.parquet.headers import PageHeader, read_page_header

MAX_ROWS = 1_000_000  # in a file; our own parts have thousands
_MAX_FOOTER_NBYTES = 32 << 20
_SMALL_FOOTER_NBYTES = 1 << 20  # whatever such a footer contains, Arrow takes less than 300 MB for it
_MAX_LEAVES = 256
_MAX_SCHEMA_DEPTH = 8
_CHUNK_NBYTES = 24  # least size in a footer of a row group's column; Arrow takes 600 bytes of memory for it
_ROW_NBYTES = 1  # least size in a file of a row, except for
_FREE_ROWS = 1000
_TAIL_NBYTES = 8  # the footer's length and the magic
_MAX_TEXT_CHARS = 1 << 16  # the limit for a layer's name
_HEADER_NBYTES = 1 << 12  # most page headers are far shorter
_MAX_HEADER_NBYTES = 16 << 20
_FREE_NBYTES = 1 << 20  # allowed to each column of a row group, in addition to these for each row on average:
_VALUE_NBYTES = 256
_VALUES = 8  # dimensions of a shape


def check_footer(reader: BinaryIO) -> None:
    """Raises ValueError, with the reason, if Arrow would need more memory for a file's footer than a small multiple of
    its size. Errors that Arrow finds itself (not Parquet, truncated) are left to Arrow."""
    nbytes = reader.seek(0, io.SEEK_END)
    reader.seek(max(nbytes - _TAIL_NBYTES, 0))
    tail = reader.read(_TAIL_NBYTES)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != b"PAR1" or length > nbytes - _TAIL_NBYTES:
        return
    if length > _MAX_FOOTER_NBYTES:
        _refuse(f"its footer has {rounded_size(length)}, over {_MAX_FOOTER_NBYTES >> 20} MiB")
    reader.seek(nbytes - _TAIL_NBYTES - length)
    try:
        _check_metadata(Compact(reader.read(length)), nbytes)
    except EOFError as error:
        raise ValueError(f"its footer is damaged: {error}") from error


def _check_metadata(footer: Compact, nbytes: int) -> None:
    leaves = rows = 0
    for field, kind in footer.fields():
        if (field, kind) == (2, LIST):
            leaves = _leaves(footer)
        elif (field, kind) == (3, I64):
            rows = footer.integer()
            most = min(nbytes // _ROW_NBYTES + _FREE_ROWS, MAX_ROWS)
            if not 0 <= rows <= most:
                said = f"its footer says that it has {counted(rows, 'row')}"
                _refuse(f"{said}, but at most {most} can be in {counted(nbytes, 'byte')}")
        elif (field, kind) == (4, LIST):
            _check_row_groups(footer, leaves, rows)
            return  # what follows is small
        else:
            footer.skip(kind)


def _leaves(footer: Compact) -> int:
    """The number of columns: the leaves of the schema, a tree that lists its nodes depth first, each with the number of
    its children."""
    count, kind = footer.elements()
    leaves, open_nodes = 0, [1]
    for _ in range(count):
        children = 0
        for field, inner in footer.fields() if kind == STRUCT else ():
            if (field, inner) == (5, I32):
                children = footer.integer()
            else:
                footer.skip(inner)
        while open_nodes and open_nodes[-1] == 0:
            open_nodes.pop()
        if not open_nodes or children < 0:
            _refuse("its schema is not a tree")
        open_nodes[-1] -= 1
        if children:
            open_nodes.append(children)
        else:
            leaves += 1
        if len(open_nodes) > _MAX_SCHEMA_DEPTH or leaves > _MAX_LEAVES:
            _refuse(f"its schema has more than {_MAX_LEAVES} columns or {_MAX_SCHEMA_DEPTH} levels")
    return leaves


def _check_row_groups(footer: Compact, leaves: int, rows: int) -> None:
    count, kind = footer.elements()
    if kind != STRUCT or count > rows + 1:
        _refuse(f"its footer has {counted(count, 'row group')} for {counted(rows, 'row')}")
    if count * leaves * _CHUNK_NBYTES > len(footer.data):
        groups = f"{counted(count, 'row group')} of {counted(leaves, 'column')}"
        _refuse(f"its footer has {groups} in {counted(len(footer.data), 'byte')}")
    if len(footer.data) <= _SMALL_FOOTER_NBYTES:
        return
    for _ in range(count):
        for field, inner in footer.fields():
            if (field, inner) != (1, LIST):
                footer.skip(inner, 1)
                continue
            columns, of = footer.elements()
            if columns != leaves:
                _refuse(f"a row group has {columns} of {counted(leaves, 'column')}")
            for _ in range(columns):
                footer.skip(of, 2)


def is_text(kind: pa.DataType) -> bool:
    """Whether Arrow can read a column of this type as a dictionary, with each text once, and indices."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind))


def texts_of(column: pa.ChunkedArray) -> list[str | None]:
    """The texts of a column that was read as a dictionary and indices. Texts with the same index are one object, so a
    text that repeats takes memory once.

    Raises ValueError if a text is longer than any name may be.
    """
    texts: list[str | None] = []
    for chunk in column.chunks:
        dictionary = dictionary_of(chunk)
        texts += [None if index is None else dictionary[index] for index in chunk.indices.to_pylist()]
    return texts


def dictionary_of(chunk: pa.DictionaryArray) -> list[str | None]:
    """The texts, each once. Raises ValueError if a text is longer than any name may be."""
    found = chunk.dictionary
    # a cast imports pyarrow.compute, which takes ten times as long as opening the dataset
    texts: list[str | None] = (
        found if pa.types.is_string(found.type) else found.cast(pa.string())
    ).to_pylist()
    if max(map(len, filter(None, texts)), default=0) > _MAX_TEXT_CHARS:
        raise ValueError(f"a text has more than {_MAX_TEXT_CHARS} characters")
    return texts


def small_columns(metadata: Any, names: Iterable[str]) -> list[PageLimit]:
    """Limits for the columns `names`, whose values are short texts, numbers and shapes, in all row groups of Arrow's
    `metadata`."""
    wanted = set(names)
    limits = []
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        nbytes = _FREE_NBYTES + group.num_rows * _VALUE_NBYTES
        values = _FREE_ROWS + group.num_rows * _VALUES
        columns = map(group.column, range(group.num_columns))
        limits += [
            PageLimit.of(column, nbytes, values)
            for column in columns
            if column.path_in_schema.partition(".")[0] in wanted
        ]
    return limits


def pages_start(column: Any) -> int:
    """Offset in the file of a column's first page. column: Arrow's metadata of it. 0 if that names no place."""
    return min(filter(None, (column.dictionary_page_offset, column.data_page_offset)), default=0)


@dataclass(slots=True)
class PageLimit:
    """What the pages of one column of one row group may take.

    start, stop: where the pages are in the file; start moves to the next page's header as pages pass. nbytes, values:
    decompressed bytes and values that are still allowed; they shrink as pages pass.
    """

    name: str
    start: int
    stop: int
    nbytes: int
    values: int

    @classmethod
    def of(cls, column: Any, nbytes: int, values: int) -> PageLimit:
        """column: Arrow's metadata of the column."""
        start = pages_start(column)
        return cls(column.path_in_schema, start, start + column.total_compressed_size, nbytes, values)


class GuardedReader(io.RawIOBase):
    """Reads from another reader, and raises ValueError instead of passing on a page that exceeds its column's limit.

    Thread-safe as far as Arrow needs it: a seek and the read that follows come from the same thread.
    """

    def __init__(self, reader: BinaryIO) -> None:
        self._reader = reader
        self._limits: list[PageLimit] = []
        self._lock = threading.Lock()

    def limit(self, limits: Iterable[PageLimit]) -> None:
        """Checks the pages of these columns, and only these, in all further reads."""
        self._limits = [limit for limit in limits if limit.start < limit.stop]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._reader.seek(offset, whence)

    def tell(self) -> int:
        return self._reader.tell()

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        with self._lock:
            start = self._reader.tell()
            data = self._reader.read(size)
            stop = start + len(data)
            for limit in self._limits:
                while limit.start < stop and limit.start < limit.stop:
                    self._pass_page(limit, start, data)
            self._reader.seek(start + len(data))
        return data

    def close(self) -> None:
        self._reader.close()
        super().close()

    def _pass_page(self, limit: PageLimit, start: int, data: bytes) -> None:
        """Subtracts the page at limit.start from the limit. data: the bytes just read. start: their offset in the
        file."""
        header_nbytes, stored_nbytes, page_nbytes, values = self._header(limit, start, data)
        limit.start += header_nbytes + stored_nbytes
        limit.nbytes -= page_nbytes
        limit.values -= values
        if limit.nbytes < 0 or limit.values < 0:
            _refuse(
                f"a page of {limit.name!r} has {counted(values, 'value')} in "
                f"{counted(page_nbytes, 'byte')}, more than the file's rows can need"
            )

    def _header(self, limit: PageLimit, start: int, data: bytes) -> PageHeader:
        at = limit.start - start
        if at >= 0:
            with suppress(EOFError):  # the header may continue beyond what was read
                return read_page_header(data[at : at + _HEADER_NBYTES])
        most = min(limit.stop - limit.start, _MAX_HEADER_NBYTES)
        for nbytes in (*(size for size in (_HEADER_NBYTES, 1 << 16, 1 << 20) if size < most), most):
            self._reader.seek(limit.start)
            with suppress(EOFError):
                return read_page_header(self._reader.read(nbytes))
        raise ValueError(f"a page of {limit.name!r} has no readable header")


def _refuse(reason: str) -> NoReturn:
    raise ValueError(reason)
