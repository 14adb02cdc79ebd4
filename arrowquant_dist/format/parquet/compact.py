"""Reader for Thrift's compact protocol: a struct's fields one by one, with a way to skip them. thrift.py writes it.

Only what the caller asks for is built, and nothing takes more steps than the data has bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

TRUE, FALSE, I32, I64, BINARY, LIST, STRUCT = 1, 2, 5, 6, 8, 9, 12
_BYTE, _I16, _DOUBLE, _SET, _MAP = 3, 4, 7, 10, 11
_MAX_DEPTH = 16
_MAX_VARINT_NBYTES = 10
_ENDS = "the bytes end before a value does"


class Compact:
    """A position in encoded bytes. Methods raise EOFError if the bytes end within a value, and ValueError if they are
    not a value."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data, self.at = data, at

    def fields(self) -> Iterator[tuple[int, int]]:
        """Yields (id, type) of a struct's fields. The caller reads or skips each value before it asks for the next."""
        field, data = 0, self.data
        while self.at < len(data):
            head = data[self.at]
            self.at += 1
            if head == 0:
                return
            field = field + (head >> 4) if head >> 4 else self.integer()
            yield field, head & 0xF
        raise EOFError(_ENDS)

    def elements(self) -> tuple[int, int]:
        """(number of a list's elements, their type)."""
        head = self._byte()
        count = head >> 4 if head >> 4 != 0xF else self._varint()
        if count > len(self.data) - self.at:
            raise EOFError("a list has more elements than bytes follow")
        return count, head & 0xF

    def integer(self) -> int:
        """Reads an integer of 16, 32 or 64 bits."""
        at, data = self.at, self.data
        if at < len(data) and data[at] < 0x80:  # as most are
            self.at = at + 1
            return data[at] >> 1 ^ -(data[at] & 1)
        value = self._varint()
        return value >> 1 ^ -(value & 1)

    def skip(self, kind: int, depth: int = 0) -> None:
        """Skips a value. kind: its type. depth: how deep it is nested, which is limited."""
        if depth > _MAX_DEPTH:
            raise ValueError("it is nested too deeply")
        if kind in (TRUE, FALSE):
            return
        if kind in (_I16, I32, I64):
            self._varint()
        elif kind in (_BYTE, _DOUBLE):
            self._advance(1 if kind == _BYTE else 8)
        elif kind == BINARY:
            self._advance(self._varint())
        elif kind == STRUCT:
            for _, inner in self.fields():
                self.skip(inner, depth + 1)
        elif kind in (LIST, _SET):
            count, inner = self.elements()
            for _ in range(count):
                self.skip(_BYTE if inner in (TRUE, FALSE) else inner, depth + 1)
        else:
            raise ValueError(f"a value has the type {kind}, which is not one of Parquet's")

    def _byte(self) -> int:
        if self.at >= len(self.data):
            raise EOFError(_ENDS)
        self.at += 1
        return self.data[self.at - 1]

    def _varint(self) -> int:
        if self.at < len(self.data) and self.data[self.at] < 0x80:  # as most are
            self.at += 1
            return self.data[self.at - 1]
        value = self._byte() & 0x7F
        for i in range(1, _MAX_VARINT_NBYTES):
            byte = self._byte()
            value |= (byte & 0x7F) << 7 * i
            if byte < 0x80:
                return value
        raise ValueError("a number has more than 64 bits")

    def _advance(self, nbytes: int) -> None:
        if nbytes > len(self.data) - self.at:
            raise EOFError(_ENDS)
        self.at += nbytes
