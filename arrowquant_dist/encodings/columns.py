"""Encodings as columns of the plan's table, and as plain values for its fingerprint.

Column `encoding` holds the name of the kind. Each kind in the plan whose type has fields also has a column of that
name: a struct of the fields, null in the rows of other kinds. So a plan only has columns for the kinds in it, and
adding a kind changes no plan that does not use it. Fields are numbers, texts, tuples of numbers and Places; those that
may be missing are annotated `| None`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from functools import cache
from types import NoneType
from typing import Any, NamedTuple, get_args, get_type_hints

import pyarrow as pa

from arrowquant_dist.columns import python_values
from arrowquant_dist.encodings.encoding import Encoding
from arrowquant_dist.encodings.place import Place
from arrowquant_dist.encodings.registry import ENCODINGS

KIND_FIELD = pa.field("encoding", pa.string())
_INTS = pa.list_(pa.int64())
_ARROW_TYPES = {
    int: pa.int64(),
    str: pa.string(),
    tuple[int, ...]: _INTS,
    tuple[int, int]: _INTS,
    Place: pa.struct(
        [("uri", pa.string()), ("offset", pa.int64()), ("dtype", pa.string()), ("shape", _INTS)]
    ),
}

Shown = Callable[[str], str]  # returns a URI without anything that may be secret


class _Field(NamedTuple):
    name: str
    kind: Any  # a key of _ARROW_TYPES
    is_optional: bool


def encoding_fields(used: Iterable[type[Encoding]]) -> list[pa.Field]:
    """The columns of a plan that uses these kinds."""
    structs = {kind.kind: kind for kind in used if _fields_of(kind)}
    return [KIND_FIELD, *(pa.field(kind, _struct_of(structs[kind])) for kind in ENCODINGS if kind in structs)]


def encoding_columns(
    encodings: Sequence[Encoding], columns: Sequence[pa.Field], shown: Shown
) -> Iterator[Sequence[Any]]:
    """Yields the values of each column of `encoding_fields`, structs as tuples, in the form `arrow_batch` takes."""
    kinds = [encoding.kind for encoding in encodings]
    yield kinds
    for column in columns[1:]:
        names = [field.name for field in _fields_of(ENCODINGS[column.name])]
        yield [
            tuple([_cell(getattr(encoding, name), shown) for name in names]) if kind == column.name else None
            for kind, encoding in zip(kinds, encodings, strict=True)
        ]


def are_encoding_fields(found: Sequence[pa.Field]) -> bool:
    """Whether these are columns that `encoding_fields` makes for known kinds."""
    return list(found) == encoding_fields(ENCODINGS[field.name] for field in found if field.name in ENCODINGS)


def read_encodings(batch: pa.RecordBatch) -> list[Encoding]:
    """The encoding of each row; equal encodings are the same object. Raises ValueError for columns that
    `encoding_columns` would not write."""
    kinds = python_values(batch.column(KIND_FIELD.name))
    by_kind = {kind: _read_kind(kind, batch) for kind in dict.fromkeys(kinds)}
    found = [by_kind[kind][row] for row, kind in enumerate(kinds)]
    encodings = [encoding for encoding in found if encoding is not None]
    if len(encodings) != len(found):
        raise ValueError("an encoding is empty")
    return encodings


def describe(encoding: Encoding, shown: Shown) -> dict[str, Any]:
    """The encoding's kind and fields as plain values; fields that are None are left out."""
    found: dict[str, Any] = {"kind": encoding.kind}
    for name, _, _ in _fields_of(type(encoding)):
        value = getattr(encoding, name)
        if value is not None:
            found[name] = _cell(value, shown)
    return found


@cache
def _fields_of(cls: type) -> tuple[_Field, ...]:
    hints = get_type_hints(cls)
    found = []
    for field in fields(cls):
        hint = hints[field.name]
        is_optional = NoneType in get_args(hint)
        found.append(_Field(field.name, get_args(hint)[0] if is_optional else hint, is_optional))
    return tuple(found)


def _struct_of(cls: type) -> pa.DataType:
    return pa.struct([(field.name, _ARROW_TYPES[field.kind]) for field in _fields_of(cls)])


def _cell(value: Any, shown: Shown) -> Any:
    if isinstance(value, Place):
        return shown(value.uri), value.offset, value.dtype, value.shape
    return value


def _read_kind(kind: str, batch: pa.RecordBatch) -> list[Encoding | None]:
    """The encoding of each row that has one of this kind; None for other rows."""
    if kind not in ENCODINGS:
        raise ValueError(f"there is no encoding {kind!r}")
    if not _fields_of(ENCODINGS[kind]):
        return [_only(ENCODINGS[kind])] * batch.num_rows
    if kind not in batch.schema.names:
        raise ValueError(f"the encodings {kind!r} have no column")
    seen: dict[Any, Any] = {None: None}
    return [seen.setdefault(value, value) for value in _read_structs(batch.column(kind), ENCODINGS[kind])]


@cache
def _only(kind: type[Encoding]) -> Encoding:
    """The one instance of a type without fields."""
    return kind()


def _read_structs(array: pa.StructArray, cls: Any) -> Iterator[Any]:
    """An instance of the dataclass `cls` for each struct; None for null."""
    columns = []
    for field, child in zip(_fields_of(cls), array.flatten(), strict=True):  # null where the struct is
        if not field.is_optional and child.null_count != array.null_count:
            raise ValueError(f"{field.name} of an encoding is empty")
        columns.append(_read_values(child, field.kind))
    rows = zip(*columns, strict=True)
    if not array.null_count:
        return (cls(*cells) for cells in rows)
    are_valid = array.is_valid().to_pylist()
    return (cls(*cells) if valid else None for valid, cells in zip(are_valid, rows, strict=True))


def _read_values(array: pa.Array, kind: Any) -> Iterable[Any]:
    if kind is Place:
        return _read_structs(array, Place)
    values = python_values(array)
    if _ARROW_TYPES[kind] != _INTS:
        return values
    seen: dict[Any, Any] = {}  # most layers have the shape of another
    items = (None if value is None else tuple(value) for value in values)
    return [seen.setdefault(item, item) for item in items]
