"""Layers made from an index's columns equal those made row by row, and errors in them are reported alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_dist.dataset.indexed import IndexedLayers, blocks_of, indexed_layers
from arrowquant_dist.dataset.layers import group_layers
from arrowquant_dist.format.record import BlobRanges, RowRecord, StoredRange
from arrowquant_dist.format.row import RowHeader
from arrowquant_dist.target.index import IndexTable, read_table, write_index

PART = "weights/shard=00000/part-0.parquet"
CHECKSUM = "xxh3_128:0"


def url(path: str) -> str:
    return f"/data/{path}"


def int8_record(name: str, start: int, stop: int, rows: int = 12, columns: int = 8) -> RowRecord:
    """Rows [start, stop) of an int8 layer with a scale a row."""
    count = stop - start
    shape, whole = (count, columns), (rows, columns)
    header = RowHeader(name, start, shape, whole, 1, "float32", "int8", 0, 0, count * columns, CHECKSUM)
    sizes = (count * columns, 4 * count, 0, 16)
    data, scales, zero_points, digests = (StoredRange(100 + 1000 * i, n, n) for i, n in enumerate(sizes))
    ranges = BlobRanges(data, scales, zero_points, digests, "none")
    return RowRecord(header, ranges, 4 * count * columns, 0, 0, "rtn", None, None)


def table_of(records: Sequence[RowRecord]) -> IndexTable:
    return read_table(write_index((PART, 0, record) for record in records))


SOUND = [
    int8_record("b", 0, 12),
    int8_record("a", 8, 12),
    int8_record("c", 0, 3, rows=3),
    int8_record("a", 0, 5),
    int8_record("a", 5, 8),
]


def header_with(record: RowRecord, **changes: Any) -> RowRecord:
    return replace(record, header=replace(record.header, **changes))


def with_range(record: RowRecord, value: str, **changes: int) -> RowRecord:
    changed = replace(getattr(record.ranges, value), **changes)
    return replace(record, ranges=replace(record.ranges, **{value: changed}))


def assert_alike(records: Sequence[RowRecord]) -> None:
    table = table_of(records)
    layers, errors = indexed_layers(table, url)
    expected, expected_errors = group_layers(blocks_of(table, range(table.rows)), url)
    assert [str(error) for error in errors] == [str(error) for error in expected_errors]
    assert [type(error) for error in errors] == [type(error) for error in expected_errors]
    assert list(layers) == list(expected)
    assert dict(layers) == expected


def test_sound_rows_are_layers_that_are_made_when_they_are_asked_for() -> None:
    table = table_of(SOUND)
    layers, errors = indexed_layers(table, url)
    assert errors == []
    assert isinstance(layers, IndexedLayers)
    assert list(layers) == ["b", "a", "c"]
    assert [layers.rows_of(name) for name in layers] == [[0], [3, 4, 1], [2]]
    assert [block.header.row_start for block in layers["a"].blocks] == [0, 5, 8]
    assert layers["a"] is layers["a"]
    assert "d" not in layers
    with pytest.raises(KeyError):
        layers["d"]
    assert_alike(SOUND)


def test_rows_of_one_kind_are_alike_in_all_but_names_and_places() -> None:
    layers, _ = indexed_layers(table_of([int8_record(f"l{i}", 0, 12) for i in range(5)]), url)
    assert isinstance(layers, IndexedLayers)
    assert layers.kinds == [0] * 5
    assert [block.header.layer_name for block in layers.samples] == ["l0"]


CHANGES = [
    lambda record: header_with(record, dtype="float31"),
    lambda record: header_with(record, quant_type="int5"),
    lambda record: header_with(record, dtype="int64"),
    lambda record: header_with(record, num_params=7),
    lambda record: header_with(record, group_size=-1),
    lambda record: header_with(record, quant_axis=3),
    lambda record: header_with(record, row_dims=0),
    lambda record: header_with(record, row_start=1),
    lambda record: header_with(record, shape=(4, 9)),
    lambda record: header_with(record, layer_shape=(1 << 40, 1 << 40)),
    lambda record: header_with(record, checksum=""),
    lambda record: header_with(record, layer_name="a"),
    lambda record: header_with(record, layer_name=""),
    lambda record: with_range(record, "data", stored_nbytes=5),
    lambda record: with_range(record, "data", nbytes=5),
    lambda record: with_range(record, "scales", nbytes=4, stored_nbytes=4),
    lambda record: with_range(record, "zero_points", nbytes=8, stored_nbytes=8),
    lambda record: with_range(record, "chunk_digests", nbytes=0, stored_nbytes=0),
    lambda record: replace(record, ranges=replace(record.ranges, compression="zstd")),
    lambda record: replace(record, ranges=replace(record.ranges, compression="lz4")),
    lambda record: with_range(
        replace(record, ranges=replace(record.ranges, compression="zstd")), "data", stored_nbytes=1 << 20
    ),
]


@settings(max_examples=150)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from(CHANGES)), max_size=3), st.sets(st.integers(0, 4))
)
def test_whatever_an_index_says_its_columns_tell_the_same_as_its_rows(
    changes: list[tuple[int, Any]], left_out: set[int]
) -> None:
    records = [*SOUND]
    for at, change in changes:
        records[at] = change(records[at])
    assert_alike([record for at, record in enumerate(records) if at not in left_out])


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_is_told_alike(change: Any) -> None:
    for at in range(len(SOUND)):
        assert_alike([change(record) if i == at else record for i, record in enumerate(SOUND)])


def test_rows_in_any_order_give_each_layer_its_blocks_in_theirs() -> None:
    rng = np.random.default_rng(1)
    for _ in range(10):
        assert_alike([SOUND[i] for i in rng.permutation(len(SOUND))])
