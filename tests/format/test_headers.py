from __future__ import annotations

import io

import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given

from arrowquant_dist.format.parquet import thrift
from arrowquant_dist.format.parquet.headers import PageHeader, read_page_header

_NUMBERS = st.integers(0, (1 << 31) - 1)
_SIGNED = st.integers(-(1 << 31), (1 << 31) - 1)


def _statistics(least: bytes) -> thrift.Field:
    return thrift.nested(5, thrift.struct(thrift.binary(5, least), thrift.binary(6, least)))


def _header(kind: int, page: int, stored: int, crc: int | None, *body: thrift.Field) -> bytes:
    sums = [] if crc is None else [thrift.i32(4, crc)]
    return thrift.struct(thrift.i32(1, kind), thrift.i32(2, page), thrift.i32(3, stored), *sums, *body)


@given(_NUMBERS, _NUMBERS, _NUMBERS, st.none() | _SIGNED, st.none() | st.binary(max_size=9), st.binary())
def test_a_data_pages_header_is_read_with_and_without_what_it_may_lack(
    page: int, stored: int, values: int, crc: int | None, least: bytes | None, rest: bytes
) -> None:
    encodings = [thrift.i32(field, field) for field in (2, 3, 4)]
    statistics = [] if least is None else [_statistics(least) if least else thrift.nested(5, b"\0")]
    levels = thrift.struct(thrift.i32(1, values), *encodings, *statistics)
    header = _header(0, page, stored, crc, thrift.nested(5, levels))
    assert read_page_header(header + rest) == PageHeader(len(header), stored, page, values)
    for cut in range(len(header)):
        with pytest.raises(EOFError):
            read_page_header(header[:cut])


@given(_NUMBERS, _NUMBERS, _NUMBERS, st.none() | _SIGNED, st.sampled_from([b"", b"\x11", b"\x12"]))
def test_a_dictionarys_header_has_no_values_of_the_column(
    page: int, stored: int, entries: int, crc: int | None, is_sorted: bytes
) -> None:
    body = thrift.struct(thrift.i32(1, entries), thrift.i32(2, 0))[:-1] + is_sorted + b"\0"
    header = _header(2, page, stored, crc, thrift.nested(7, body))
    assert read_page_header(header) == PageHeader(len(header), stored, page, 0)


@given(_NUMBERS, _NUMBERS, _NUMBERS)
def test_a_header_of_version_2_is_read(page: int, stored: int, values: int) -> None:
    body = thrift.struct(*(thrift.i32(field, values if field == 1 else 0) for field in range(1, 7)))
    header = _header(3, page, stored, None, thrift.nested(8, body))
    assert read_page_header(header) == PageHeader(len(header), stored, page, values)


@pytest.mark.parametrize("wrong", [(-1, 5, 5), (5, -1, 5), (5, 5, -1)])
def test_negative_sizes_and_counts_are_refused(wrong: tuple[int, int, int]) -> None:
    page, stored, values = wrong
    levels = thrift.struct(*(thrift.i32(field, values if field == 1 else 0) for field in range(1, 5)))
    with pytest.raises(ValueError, match="negative sizes, or none"):
        read_page_header(_header(0, page, stored, 7, thrift.nested(5, levels)))


def test_of_a_field_that_comes_twice_the_last_counts_() -> None:
    levels = thrift.struct(*(thrift.i32(field, 1) for field in range(1, 5)))
    header = _header(0, 10, 10, None, thrift.nested(5, levels))
    # field 2 once more: an id that goes down has the long form
    both = header[:-1] + b"\x05\x04" + thrift.varint(1 << 31) + b"\0"
    assert read_page_header(both).page_nbytes == 1 << 30


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("statistics", [False, True])
def test_headers_of_arrows_pages_lead_from_one_to_the_next(version: str, *, statistics: bool) -> None:
    out = io.BytesIO()
    table = pa.table({"texts": ["one", "two", "one"] * 100, "numbers": pa.array(range(300), pa.int64())})
    pq.write_table(table, out, data_page_version=version, write_statistics=statistics, data_page_size=256)
    data = out.getvalue()
    group = pq.read_metadata(io.BytesIO(data)).row_group(0)
    for column in map(group.column, range(2)):
        at = min(filter(None, (column.dictionary_page_offset, column.data_page_offset)))
        stop, values = at + column.total_compressed_size, 0
        while at < stop:
            header = read_page_header(data[at:])
            at += header.nbytes + header.stored_nbytes
            values += header.values
        assert (at, values) == (stop, 300)
