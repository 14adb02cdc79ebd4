"""Encoder for the part of Thrift's compact protocol that Parquet's headers and footers need: values in, bytes out.

A field is (id, type, encoded bytes); `struct` joins fields, which must be in ascending order of ids.
"""

from __future__ import annotations

from collections.abc import Sequence

Field = tuple[int, int, bytes]

_I16, _I32, _I64, _BINARY, _LIST, _STRUCT = 4, 5, 6, 8, 9, 12


def varint(value: int) -> bytes:
    """Unsigned LEB128 of `value` >= 0."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def i16(field_id: int, value: int) -> Field:
    return field_id, _I16, _zigzag(value)


def i32(field_id: int, value: int) -> Field:
    return field_id, _I32, _zigzag(value)


def i64(field_id: int, value: int) -> Field:
    return field_id, _I64, _zigzag(value)


def binary(field_id: int, value: bytes | str) -> Field:
    return field_id, _BINARY, _binary(value)


def nested(field_id: int, value: bytes) -> Field:
    """A field that holds a struct. value: what `struct` returned."""
    return field_id, _STRUCT, value


def structs(field_id: int, values: Sequence[bytes]) -> Field:
    return field_id, _LIST, _list(_STRUCT, values)


def strings(field_id: int, values: Sequence[str]) -> Field:
    return field_id, _LIST, _list(_BINARY, [_binary(value) for value in values])


def i32s(field_id: int, values: Sequence[int]) -> Field:
    return field_id, _LIST, _list(_I32, [_zigzag(value) for value in values])


def struct(*fields: Field) -> bytes:
    out = bytearray()
    last = 0
    for (
        field_id,
        kind,
        encoded,
    ) in fields:  # Parquet's ids are at most 15 apart, so the short form always fits
        out.append((field_id - last) << 4 | kind)
        out += encoded
        last = field_id
    out.append(0)
    return bytes(out)


def _zigzag(value: int) -> bytes:
    return varint(value << 1 if value >= 0 else (-value << 1) - 1)


def _binary(value: bytes | str) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return varint(len(raw)) + raw


def _list(kind: int, encoded: Sequence[bytes]) -> bytes:
    head = (
        bytes([len(encoded) << 4 | kind])
        if len(encoded) < 15
        else bytes([0xF0 | kind]) + varint(len(encoded))
    )
    return head + b"".join(encoded)
