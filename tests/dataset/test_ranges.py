"""Values in part files are read by plain ranges: only their bytes, each of them verified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from arrowquant_dist.dataset.dataset import Dataset
from arrowquant_dist.dataset.layers import StoredBlock, group_layers
from arrowquant_dist.dataset.ranges import read_values
from arrowquant_dist.errors import CorruptWeights, StorageError
from arrowquant_dist.format.digests import CHUNK_NBYTES
from arrowquant_dist.format.record import BlobRanges, RowRecord, StoredRange
from arrowquant_dist.storage.base import ByteRange
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.target.target import Target
from tests.format.encoder import Row, kept_row, random_row, signed
from tests.target import targets

PART = "weights/shard=00000/part-0.parquet"


def write_part(root: Path, rows: Sequence[Row], compression: str) -> tuple[RowRecord, ...]:
    return targets.write_part(Target.open(str(root)), PART, rows, compression).records


def open_part(root: Path, records: Sequence[RowRecord]) -> Dataset:
    store = open_store(str(root))
    layers, errors = group_layers([StoredBlock.from_record(PART, record) for record in records], store.url)
    assert errors == []
    return Dataset(store, layers, "2")


def with_data_at(record: RowRecord, place: StoredRange) -> RowRecord:
    return replace(record, ranges=replace(record.ranges, data=place))


def big_row(rows: int = 40, columns: int = 100_000) -> Row:
    """int8, 4 MB: several chunks, and no row ends where a chunk does."""
    codes = np.random.default_rng(0).integers(-128, 128, (rows, columns), dtype=np.int8)
    row = kept_row("big", codes, "int8")
    scales = np.ones((rows, 1), "<f4").tobytes()
    how = {"dtype": "float32", "quant_type": "int8", "quant_axis": 0, "scales": scales}
    return Row(signed({**row.columns, **how}), codes)


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_every_row_of_a_part_is_read_as_it_was_written(tmp_path: Path, compression: str) -> None:
    rng = np.random.default_rng(4)
    rows = [
        kept_row("scalar", np.array(1.5, "<f4"), "float32"),
        random_row(rng, "w2", 5, 9, "int2", group_size=4, symmetric=False),
        big_row(),
        kept_row("empty", np.zeros((0, 3), "<f4"), "float32"),
        random_row(rng, "w3", 4, 9, "int3"),
    ]
    dataset = open_part(tmp_path, write_part(tmp_path, rows, compression))
    for row in rows:
        [block] = dataset.layer(row.name).blocks
        np.testing.assert_allclose(dataset.read_block(block).values(), row.decoded, rtol=1e-6, atol=1e-6)
        for start, stop in ((0, 1), (1, 4), (3, 4)):
            if stop <= block.header.rows:
                [piece] = dataset.read_rows(row.name, start, stop)
                expected = np.atleast_2d(row.decoded)[start:stop].reshape(piece.shape)
                np.testing.assert_allclose(piece.values(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("verify", "slack"), [(True, 2 * CHUNK_NBYTES), (False, 0)])
def test_rows_of_an_uncompressed_part_cost_their_own_bytes(tmp_path: Path, verify: Any, slack: int) -> None:
    dataset = open_part(tmp_path, write_part(tmp_path, [big_row()], "none"))
    dataset.read_rows("big", 20, 22, verify=verify)
    others = 40 * 4 + 4 * 16 + 500  # and the headers between them
    assert 200_000 <= dataset.nbytes_read <= 200_000 + others + slack


def test_a_whole_block_is_one_request(tmp_path: Path) -> None:
    records = write_part(tmp_path, [big_row()], "none")
    dataset = open_part(tmp_path, records)
    dataset.read_block(dataset.layer("big").blocks[0])
    assert dataset.nbytes_read <= records[0].ranges.data.nbytes + 2000  # with the headers between the values


FLIPS = ["data", "scales", "zero_points", "chunk_digests"]


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("value", FLIPS)
def test_a_flipped_byte_names_layer_object_and_range(tmp_path: Path, compression: str, value: str) -> None:
    rng = np.random.default_rng(4)
    row = random_row(rng, "w", 64, 999, "int4", group_size=32, symmetric=False)
    [record] = write_part(tmp_path, [row], compression)
    place = getattr(record.ranges, value)
    content = bytearray((tmp_path / PART).read_bytes())
    for offset in {
        place.offset,
        place.offset + place.stored_nbytes // 2,
        place.offset + place.stored_nbytes - 1,
    }:
        content[offset] ^= 1
        (tmp_path / PART).write_bytes(content)
        with pytest.raises(CorruptWeights) as caught:
            open_part(tmp_path, [record]).read_rows("w", 0, 64)
        assert caught.value.layer == "w"
        assert str(caught.value.uri).endswith(PART)
        if value == "data":
            assert caught.value.byte_range is not None
            assert caught.value.byte_range[0] <= offset < caught.value.byte_range[1]
        content[offset] ^= 1


def test_the_range_of_a_flipped_byte_is_its_chunk(tmp_path: Path) -> None:
    [record] = write_part(tmp_path, [big_row()], "none")
    content = bytearray((tmp_path / PART).read_bytes())
    offset = record.ranges.data.offset + 2 * CHUNK_NBYTES + 5
    content[offset] ^= 1
    (tmp_path / PART).write_bytes(content)
    dataset = open_part(tmp_path, [record])
    for first, last in ((0, 40), (21, 22)):
        with pytest.raises(CorruptWeights) as caught:
            dataset.read_rows("big", first, last)
        start = record.ranges.data.offset + 2 * CHUNK_NBYTES
        assert caught.value.byte_range == (start, start + CHUNK_NBYTES)
    dataset.read_rows("big", 0, 10)  # in sound chunks


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_part_that_was_cut_is_an_error(tmp_path: Path, compression: str) -> None:
    [record] = write_part(tmp_path, [big_row()], compression)
    content = (tmp_path / PART).read_bytes()
    (tmp_path / PART).write_bytes(content[: record.ranges.data.offset + 1000])
    with pytest.raises((CorruptWeights, StorageError), match="part-0"):
        open_part(tmp_path, [record]).read_rows("big", 0, 40)


def test_pages_that_inflate_beyond_their_value_are_refused(tmp_path: Path) -> None:
    [record] = write_part(tmp_path, [kept_row("w", np.zeros(1000, "u1"), "uint8")], "zstd")
    bomb: bytes = pa.Codec("zstd").compress(bytes(1 << 20), asbytes=True)
    path = tmp_path / PART
    content = path.read_bytes()
    path.write_bytes(content + bomb)
    place = replace(record.ranges.data, offset=len(content), stored_nbytes=len(bomb))
    with pytest.raises(CorruptWeights):
        open_part(tmp_path, [with_data_at(record, place)]).read_rows("w", 0, 1000)


def test_a_page_that_says_another_length_is_refused(tmp_path: Path) -> None:
    [record] = write_part(tmp_path, [kept_row("w", np.zeros(1000, "u1"), "uint8")], "zstd")
    page: bytes = pa.Codec("zstd").compress((999).to_bytes(4, "little") + bytes(1000), asbytes=True)
    path = tmp_path / PART
    content = path.read_bytes()
    path.write_bytes(content + page)
    place = replace(record.ranges.data, offset=len(content), stored_nbytes=len(page))
    with pytest.raises(CorruptWeights, match="holds 999 bytes"):
        open_part(tmp_path, [with_data_at(record, place)]).read_rows("w", 0, 1000)


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_results_are_writable_memory_of_their_own(tmp_path: Path, compression: str) -> None:
    row = random_row(np.random.default_rng(0), "w", 3, 8, "int8", symmetric=False)
    dataset = open_part(tmp_path, write_part(tmp_path, [row], compression))
    [first] = dataset.read_rows("w", 0, 3)
    for array in (first.codes, first.scales, first.zero_points):
        array[...] = 0
    [again] = dataset.read_rows("w", 0, 3)
    np.testing.assert_allclose(again.values(), row.decoded, rtol=1e-6)


def page_of(value: bytes, *, is_sized: bool) -> bytes:
    """A zstd page by pyarrow, whose header says the content's size or not."""
    content = len(value).to_bytes(4, "little") + value
    if is_sized:
        sized: bytes = pa.Codec("zstd").compress(content, asbytes=True)
        return sized
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as stream:
        stream.write(content)
    return bytes(out.getvalue())


def read_page(page: bytes, nbytes: int) -> bytes:
    empty = StoredRange(0, 0, 0)
    ranges = BlobRanges(StoredRange(0, len(page), nbytes), empty, empty, empty, "zstd")
    found = read_values(
        lambda where: np.frombuffer(page, np.uint8)[where.start : where.stop], ranges, ByteRange(0, nbytes)
    )
    return found.blobs.data.tobytes()


@pytest.mark.parametrize("is_sized", [True, False])
@pytest.mark.parametrize("nbytes", [1, 200, 251, 252, 300, 65_531, 65_532, 100_000, 5_000_000])
def test_pages_of_any_size_and_header_are_read(nbytes: int, is_sized: bool) -> None:  # noqa: FBT001
    value = np.random.default_rng(0).integers(0, 9, nbytes, np.uint8).tobytes()
    assert read_page(page_of(value, is_sized=is_sized), nbytes) == value
    assert read_page(page_of(bytes(nbytes), is_sized=is_sized), nbytes) == bytes(nbytes)


@pytest.mark.parametrize("is_sized", [True, False])
@pytest.mark.parametrize("claimed", [1 << 45, (1 << 62) - 4])
def test_a_page_that_cannot_become_the_value_is_refused_before_memory_is_taken(
    claimed: int,
    is_sized: bool,  # noqa: FBT001
) -> None:
    with pytest.raises(CorruptWeights, match="the page holds"):
        read_page(page_of(b"abc" * 100, is_sized=is_sized), claimed)


@pytest.mark.parametrize("claimed", [299, 301, 40])
def test_a_page_of_another_size_is_refused(claimed: int) -> None:
    with pytest.raises(CorruptWeights, match="the page holds 304 bytes, not"):
        read_page(page_of(b"abc" * 100, is_sized=True), claimed)
