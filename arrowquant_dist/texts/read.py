"""Texts from a file: .txt (one text a line), .jsonl (one object a line) or .parquet (a column), on any storage.

In all formats, white space is stripped from both ends of a text, and texts that are empty then are skipped and counted.
Files are not trusted: their size, the length of a line and the number of texts have limits, and errors name file and
line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

import xxhash

from arrowquant_dist.config import DEFAULT_STORAGE, Storage, check_storage
from arrowquant_dist.config.checks import check_text, shown
from arrowquant_dist.errors import InvalidConfig, NotFound, listed, shortened
from arrowquant_dist.location import Location, location
from arrowquant_dist.storage.base import Store
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.uris import redact
from arrowquant_dist.strict_json import parse_json
from arrowquant_dist.texts.builtin import NAMES, builtin_texts

COLUMN = "text"
MAX_FILE_NBYTES = 1 << 30
MAX_TEXT_NBYTES = 1 << 20
MAX_TEXTS = 1_000_000
MAX_TEXTS_NBYTES = 1 << 30
_TXT, _JSONL, _PARQUET = ".txt", ".jsonl", ".parquet"


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts in the order of their source. name: the source, safe to show. skipped: number of empty texts left out."""

    name: str
    items: tuple[str, ...]
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.items)

    @property
    def digest(self) -> str:
        """`xxh3_128:<hex>` of the texts in order, each after its length in bytes. Equal texts have equal digests,
        whatever format they came in."""
        state = xxhash.xxh3_128()
        for text in self.items:
            data = text.encode()
            state.update(len(data).to_bytes(8, "little") + data)
        return f"xxh3_128:{state.hexdigest()}"


def read_texts(
    source: Location | Sequence[str], column: str | None = None, storage: Storage = DEFAULT_STORAGE
) -> Texts:
    """The texts at `source`: a file or URL that ends with .txt, .jsonl or .parquet, `builtin`, `builtin:more`,
    `builtin:held-back`, or a list of texts itself.

    column: key or column that has the texts in .jsonl and .parquet files; None: `text`. storage: how files are reached.
    Raises NotFound, InvalidConfig, which names file and line, and StorageError.
    """
    check_storage(storage)
    if column is not None:
        check_text("column", column)
    if isinstance(source, list | tuple):
        _refuse_column(column, "a list of texts")
        return _given(source)
    if isinstance(source, str) and source in NAMES:
        _refuse_column(column, source)
        return Texts(source, builtin_texts(source))
    return _from_file(location(cast(Location, source), "texts"), column, storage)


def _given(source: Sequence[Any]) -> Texts:
    for index, text in enumerate(source):
        if not isinstance(text, str):
            raise InvalidConfig(f"texts[{index}] is {shown(text)}; each has to be a string")
    return _collected("a list", ((index, text) for index, text in enumerate(source)), "text")


def _from_file(uri: str, column: str | None, storage: Storage) -> Texts:
    name = redact(uri)
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in (_TXT, _JSONL, _PARQUET):
        message = (
            "texts come from a file that ends with .txt (one text per line), .jsonl or .parquet, or from the package: "
            + ", ".join(NAMES)
        )
        raise InvalidConfig(message, uri=name)
    if suffix == _TXT:
        _refuse_column(column, "a .txt file")
    store = open_store(uri, storage)
    if not store.exists(""):
        raise NotFound("no such file of texts; check the spelling", uri=name)
    nbytes = store.size("")
    if nbytes > MAX_FILE_NBYTES:
        message = f"it has {nbytes} bytes, but at most {MAX_FILE_NBYTES} are allowed; use a part of it"
        raise InvalidConfig(message, uri=name)
    wanted = COLUMN if column is None else column
    if suffix == _PARQUET:
        return _collected(name, _of_parquet(store, name, wanted), "row")
    lines = _lines(store.read(""), name)
    return _collected(name, lines if suffix == _TXT else _of_json(lines, name, wanted), "line")


def _refuse_column(column: str | None, what: str) -> None:
    if column is not None:
        raise InvalidConfig(f"column is {_quoted(column)}, but {what} has no columns; leave it out")


def _quoted(column: str) -> str:
    return repr(shortened(column))


def _lines(data: bytes, name: str) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of each line. Only \\n and \\r\\n end a line."""
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if len(line) > MAX_TEXT_NBYTES:
            message = f"line {number} has {len(line)} bytes, but a text has at most {MAX_TEXT_NBYTES}; a text is a line"
            raise InvalidConfig(message, uri=name)
        try:
            yield number, line.decode()
        except UnicodeDecodeError as error:
            message = f"line {number} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
            raise InvalidConfig(message, uri=name) from error


def _of_json(lines: Iterable[tuple[int, str]], name: str, column: str) -> Iterator[tuple[int, str]]:
    for number, line in lines:
        if not line.strip():
            yield number, ""
            continue
        try:
            values = parse_json(line.encode())
        except ValueError as error:
            message = f"line {number} is not JSON ({shortened(str(error))}); each line has to be an object with a text"
            raise InvalidConfig(message, uri=name) from error
        if not isinstance(values, dict):
            message = f"line {number} is {shown(values)}; each line has to be an object with a text"
            raise InvalidConfig(message, uri=name)
        if column not in values:
            there = listed(values) or "nothing"
            message = f"line {number} has no {_quoted(column)}, only {there}; name its key with --column"
            raise InvalidConfig(message, uri=name)
        if not isinstance(values[column], str):
            message = f"{_quoted(column)} of line {number} is {shown(values[column])}; it has to be a string"
            raise InvalidConfig(message, uri=name)
        yield number, values[column]


def _of_parquet(store: Store, name: str, column: str) -> Iterator[tuple[int, str]]:
    """Number and text of each row; a null is an empty text. The rows are read a few thousand at a time."""
    import pyarrow as pa

    with store.open_reader("") as file:
        parquet = _opened_parquet(file, name, column)
        number = 0
        try:
            for batch in parquet.iter_batches(2048, columns=[column]):
                for value in batch.column(0):
                    number += 1
                    yield number, value.as_py() or ""
        except UnicodeDecodeError as error:
            message = f"row {number} is not UTF-8 ({error.reason}); write the column again"
            raise InvalidConfig(message, uri=name) from error
        except (pa.ArrowException, OSError) as error:
            raise _no_parquet(name, error) from error


def _opened_parquet(file: BinaryIO, name: str, column: str) -> Any:
    """A pyarrow ParquetFile, after checks that `column` is there, has texts, and not too many bytes of them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        parquet = pq.ParquetFile(file)
        schema = parquet.schema_arrow
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _no_parquet(name, error) from error
    if column not in schema.names:
        message = f"it has no column {_quoted(column)}, only {listed(schema.names)}; name it with --column"
        raise InvalidConfig(message, uri=name)
    kind = schema.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        message = f"column {_quoted(column)} has the type {kind}; it has to have strings"
        raise InvalidConfig(message, uri=name)
    nbytes = _decoded_nbytes(parquet.metadata, column)
    if nbytes > MAX_TEXTS_NBYTES:
        message = f"column {_quoted(column)} takes {nbytes} bytes, but at most {MAX_TEXTS_NBYTES} are allowed"
        raise InvalidConfig(f"{message}; use a part of it", uri=name)
    return parquet


def _decoded_nbytes(metadata: Any, column: str) -> int:
    """Uncompressed size of a column, as the file states it: a small file may hold very much."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    chunks = [group.column(index) for group in groups for index in range(group.num_columns)]
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == column)


def _no_parquet(name: str, error: BaseException) -> InvalidConfig:
    reason = shortened(" ".join(str(error).split()), 300)
    return InvalidConfig(
        f"it can't be read as Parquet ({reason}); fetch it again or write it again", uri=name
    )


def _collected(name: str, found: Iterable[tuple[int, str]], unit: str) -> Texts:
    """Texts from numbered ones, within the limits. unit: what the numbers in `found` count, for errors."""
    items: list[str] = []
    skipped = total = 0
    for number, raw in found:
        text = raw.strip()
        if not text:
            skipped += 1
            continue
        try:
            nbytes = len(text.encode())
        except UnicodeEncodeError as error:
            message = f"{unit} {number} has an unpaired surrogate, which is not valid text; remove it"
            raise InvalidConfig(message, uri=name) from error
        total += nbytes
        if nbytes > MAX_TEXT_NBYTES:
            message = (
                f"{unit} {number} has {nbytes} bytes, but a text has at most {MAX_TEXT_NBYTES}; split it"
            )
            raise InvalidConfig(message, uri=name)
        items.append(text)
        if len(items) > MAX_TEXTS or total > MAX_TEXTS_NBYTES:
            message = f"more than {MAX_TEXTS} texts, or {MAX_TEXTS_NBYTES} bytes of them; use a part of it"
            raise InvalidConfig(message, uri=name)
    if not items:
        raise InvalidConfig("it has no texts; use a file with one text per line", uri=name)
    return Texts(name, tuple(items), skipped)
