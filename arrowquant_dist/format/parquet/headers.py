"""Reads the headers of Parquet pages. pages.py writes them."""

from __future__ import annotations

import re
from typing import NamedTuple

from arrowquant_dist.format.parquet.compact import I32, STRUCT, Compact

# The headers that Arrow and we write for data pages of version 1 and dictionaries: 32-bit integers, no statistics.
_INTEGER = rb"[\x80-\xff]{0,4}[\x00-\x7f]"
_USUAL = re.compile(
    rb"\x15%(i)s\x15(%(i)s)\x15(%(i)s)"  # type, decompressed size, stored size
    rb"(?:(?:\x15%(i)s\x1c|\x2c)\x15(%(i)s)\x15%(i)s\x15%(i)s\x15%(i)s(?:\x1c\x00)?"  # CRC-32, values, encodings
    rb"|(?:\x15%(i)s\x3c|\x4c)\x15%(i)s\x15%(i)s[\x11\x12]?)\x00\x00" % {b"i": _INTEGER},
    re.DOTALL,
)


class PageHeader(NamedTuple):
    """nbytes: size of the header itself. stored_nbytes, page_nbytes: size of the page as stored, and decompressed.
    values: number of values; 0 for a dictionary."""

    nbytes: int
    stored_nbytes: int
    page_nbytes: int
    values: int


def read_page_header(data: bytes) -> PageHeader:
    """The header at the beginning of `data`.

    Raises EOFError if `data` ends within it, and ValueError if sizes are negative or missing.
    """
    usual = _USUAL.match(data)
    header = _any_header(data) if usual is None else _usual_header(usual)
    if header.page_nbytes < 0 or header.stored_nbytes < 0 or header.values < 0:
        raise ValueError("a page's header has negative sizes, or none")
    return header


def _usual_header(found: re.Match[bytes]) -> PageHeader:
    page, stored, values = found.groups()
    return PageHeader(
        found.end(), _integer(stored), _integer(page), 0 if values is None else _integer(values)
    )


def _any_header(data: bytes) -> PageHeader:
    header = Compact(data)
    page_nbytes = stored_nbytes = -1
    values = 0
    for field, kind in header.fields():
        if kind == I32:
            number = header.integer()
            if field == 2:
                page_nbytes = number
            elif field == 3:
                stored_nbytes = number
        elif field in (5, 8) and kind == STRUCT:  # of data pages, versions 1 and 2
            values = _first_integer(header)
        elif field == 7 and kind == STRUCT:
            _first_integer(header)
        else:
            header.skip(kind)
    return PageHeader(header.at, stored_nbytes, page_nbytes, values)


def _first_integer(header: Compact) -> int:
    value = -1
    for field, kind in header.fields():
        if kind == I32:
            number = header.integer()
            value = number if field == 1 else value
        else:
            header.skip(kind, 1)
    return value


def _integer(encoded: bytes) -> int:
    """Decodes a single zigzag varint, like Compact.integer."""
    value = shift = 0
    for byte in encoded:
        value |= (byte & 0x7F) << shift
        shift += 7
    return value >> 1 ^ -(value & 1)
