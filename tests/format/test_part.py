from __future__ import annotations

import threading
import tracemalloc
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_dist import arena
from arrowquant_dist.errors import InvalidConfig, StorageError
from arrowquant_dist.format.digests import chunk_digests, row_checksum
from arrowquant_dist.format.parquet import pages
from arrowquant_dist.format.parquet.part import PartWriter
from arrowquant_dist.format.record import PartInfo, RowRecord, StoredRange
from arrowquant_dist.format.row import BLOB_NAMES, HEADER_NAMES, Blobs, RowHeader, StoredRow
from arrowquant_dist.format.schema import V2_SCHEMA
from arrowquant_dist.metrics import ErrorSums
from arrowquant_dist.storage.base import Store
from arrowquant_dist.storage.open import open_store
from tests.storage.places import Place

MIB = 1 << 20
ERRORS = ErrorSums(3, 1.0, 1.0, 0.5, 0.25)


def make_row(
    name: str, nbytes: int, groups: int = 3, row_start: int = 0, *, scalar: bool = False
) -> StoredRow:
    rng = np.random.default_rng([nbytes, groups, row_start])
    data = rng.integers(0, 40, nbytes).astype(np.uint8)
    scales, zero_points = rng.standard_normal((2, groups)).astype(np.float32)
    shape = () if scalar else (nbytes, 1)
    digests = chunk_digests(data)
    checksum = row_checksum(digests, scales, zero_points)
    layer_shape = shape and (nbytes + row_start, 1)
    header = RowHeader(
        layer_name=name,
        row_start=row_start,
        shape=shape,
        layer_shape=layer_shape,
        row_dims=1,
        dtype="float32",
        quant_type="int8",
        quant_axis=0,
        group_size=0,
        num_params=nbytes if shape else 1,
        checksum=checksum,
    )
    return StoredRow(header, Blobs(data, scales, zero_points, np.frombuffer(digests, np.uint8)))


def write(store: Store, path: str, compression: str, rows: list[StoredRow]) -> PartInfo:
    writer = PartWriter(store, path, compression)
    for row in rows:
        writer.add(
            row, source_nbytes=4 * row.header.num_params, method="rtn", kept_reason=None, errors=ERRORS
        )
    return writer.close()


def expected(row: StoredRow) -> dict[str, Any]:
    """The row as Parquet readers give it."""
    blobs = {name: getattr(row.blobs, name).tobytes() for name in BLOB_NAMES}
    small = {name: getattr(row.header, name) for name in HEADER_NAMES}
    return blobs | {name: [*v] if isinstance(v, tuple) else v for name, v in small.items()}


def value_at(file: bytes, where: StoredRange, compression: str) -> bytes:
    """A value from nothing but the file's bytes and its range."""
    stored = file[where.offset : where.offset + where.stored_nbytes]
    if compression == "none" or where.nbytes == 0:
        assert len(stored) == where.nbytes
        return stored
    page = pa.Codec("zstd").decompress(stored, where.nbytes + 4, asbytes=True)
    assert int.from_bytes(page[:4], "little") == where.nbytes
    return bytes(page[4:])


def check_ranges(
    file: bytes, rows: list[StoredRow], records: tuple[RowRecord, ...], compression: str
) -> None:
    assert [record.header.layer_name for record in records] == [row.header.layer_name for row in rows]
    for row, record in zip(rows, records, strict=True):
        for name in BLOB_NAMES:
            assert value_at(file, getattr(record.ranges, name), compression) == expected(row)[name]


SIZES = st.one_of(st.integers(0, 300), st.sampled_from([MIB - 1, MIB, MIB + 1, 3 * MIB + 5]))
ROWS = st.lists(st.tuples(SIZES, st.integers(0, 5), st.booleans(), st.text(max_size=12)), max_size=9)


@settings(max_examples=25)
@given(sizes=ROWS, compression=st.sampled_from(["none", "zstd"]))
def test_any_rows_are_read_back_by_parquet_and_by_ranges(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[tuple[int, int, bool, str]], compression: str
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    rows = [
        make_row(f"{i}.{name}", 1 if scalar else nbytes, groups, i, scalar=scalar)
        for i, (nbytes, groups, scalar, name) in enumerate(sizes)
    ]
    info = write(open_store(str(folder)), "a.parquet", compression, rows)
    file = (folder / "a.parquet").read_bytes()
    check_ranges(file, rows, info.records, compression)
    table = pq.ParquetFile(folder / "a.parquet", page_checksum_verification=True).read()
    table.validate(full=True)
    assert table.schema.equals(V2_SCHEMA)
    assert table.schema.metadata[b"arrowquant.schema_version"] == b"2"
    got = {row["layer_name"]: row for row in table.to_pylist()}
    assert got == {row.header.layer_name: expected(row) for row in rows}


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_the_info_tells_size_and_hash_of_the_file_everywhere(place: Place, compression: str) -> None:
    rows = [make_row("a", 10), make_row("b", 2 * MIB), make_row("c", 0, 0)]
    info = write(
        open_store(place.uri, place.storage), "weights/shard=00000/part-x.parquet", compression, rows
    )
    file = place.get(info.path)
    assert info.nbytes == len(file)
    assert info.hash == f"xxh3_128:{xxhash.xxh3_128_hexdigest(file)}"
    check_ranges(file, rows, info.records, compression)
    assert pq.read_table(pa.BufferReader(file)).num_rows == 3


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_records_say_in_which_row_group_each_row_is(tmp_path: Path, compression: str) -> None:
    rows = [make_row(f"l{i}", n, row_start=i) for i, n in enumerate([5, MIB, 7, *[900_000] * 6, 2 * MIB, 9])]
    info = write(open_store(str(tmp_path)), "a.parquet", compression, rows)
    file = pq.ParquetFile(tmp_path / "a.parquet")
    for record in info.records:
        group = file.read_row_group(record.row_group, columns=["layer_name", "row_start"])
        assert group.slice(record.row_in_group, 1).to_pylist() == [
            {"layer_name": record.header.layer_name, "row_start": record.header.row_start}
        ]


def test_a_value_of_1_mib_has_a_row_group_of_its_own_and_small_ones_share(tmp_path: Path) -> None:
    sizes = [100, MIB, *[100_000] * 60, 5 * MIB]
    rows = [make_row(f"l{i}", n, row_start=i) for i, n in enumerate(sizes)]
    write(open_store(str(tmp_path)), "a.parquet", "none", rows)
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    assert sorted(group.num_rows for group in groups) == [1, 1, 18, 43]
    assert metadata.serialized_size / len(groups) < 2000


def test_duckdb_and_polars_read_the_same_and_skip_by_statistics(tmp_path: Path) -> None:
    rows = [make_row("scalar", 1, scalar=True), make_row("empty", 0, 0)]
    rows += [make_row(f"l{i}", n, row_start=i) for i, n in enumerate([MIB, 2000, 3 * MIB])]
    for compression in ("none", "zstd"):
        write(open_store(str(tmp_path)), f"weights/shard=0/{compression}.parquet", compression, rows)
        path = str(tmp_path / f"weights/shard=0/{compression}.parquet")
        names = [field.name for field in V2_SCHEMA]
        found = duckdb.sql(f"select {', '.join(names)} from '{path}'").fetchall()  # noqa: S608
        want = {row.header.layer_name: expected(row) for row in rows}
        assert {row[0]: dict(zip(names, row, strict=True)) for row in found} == want
        frame = polars.read_parquet(path, hive_partitioning=False)
        assert {row["layer_name"]: row for row in frame.to_dicts()} == want
        one = duckdb.sql(f"select octet_length(data) from '{path}' where layer_name = 'l2'").fetchall()  # noqa: S608
        assert one == [(3 * MIB,)]
        metadata = pq.read_metadata(path)
        bounds = [metadata.row_group(i).column(0).statistics for i in range(metadata.num_row_groups)]
        assert [(b.min, b.max) for b in bounds] == [("l0", "l0"), ("l2", "l2"), ("empty", "scalar")]


def test_big_values_begin_at_multiples_of_64_and_every_reader_passes_over_the_gaps(tmp_path: Path) -> None:
    small_data_large_scales = make_row("a.scales", 5000, groups=300_000)
    rows = [
        make_row("a", MIB),
        small_data_large_scales,
        make_row("a.b", 700, row_start=1),
        make_row("a.large.both", 2 * MIB + 3, groups=262_145),
        *(make_row(f"a{'x' * i}", MIB + i, row_start=i) for i in range(70)),
    ]
    info = write(open_store(str(tmp_path)), "a.parquet", "none", rows)
    big = [
        value
        for record in info.records
        if record.header.layer_name not in {"a.scales", "a.b"}
        for value in record.ranges
        if value.nbytes >= MIB
    ]
    assert len(big) == 1 + 3 + 70  # of "a.large.both", scales and zero points too
    assert {value.offset % 64 for value in big} == {0}
    file = (tmp_path / "a.parquet").read_bytes()
    check_ranges(file, rows, info.records, "none")
    want = {row.header.layer_name: expected(row) for row in rows}
    for read_ahead in (False, True):
        opened = pq.ParquetFile(
            tmp_path / "a.parquet", page_checksum_verification=True, pre_buffer=read_ahead
        )
        assert {row["layer_name"]: row for row in opened.read().to_pylist()} == want
    names = [field.name for field in V2_SCHEMA]
    found = duckdb.sql(f"select {', '.join(names)} from '{tmp_path}/a.parquet'").fetchall()  # noqa: S608
    assert {row[0]: dict(zip(names, row, strict=True)) for row in found} == want
    frame = polars.read_parquet(tmp_path / "a.parquet", hive_partitioning=False)
    assert {row["layer_name"]: row for row in frame.to_dicts()} == want


def test_a_flipped_byte_fails_the_page_checksum(tmp_path: Path) -> None:
    info = write(open_store(str(tmp_path)), "a.parquet", "none", [make_row("a", 2 * MIB)])
    file = bytearray((tmp_path / "a.parquet").read_bytes())
    file[info.records[0].ranges.data.offset + 1000] ^= 1
    with pytest.raises(OSError, match="CRC"):
        pq.ParquetFile(pa.BufferReader(bytes(file)), page_checksum_verification=True).read()


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    rows = [make_row("a", 10), make_row("b", 2 * MIB)]
    infos = [write(open_store(str(tmp_path)), name, "zstd", rows) for name in ("1", "2")]
    assert infos[0].hash == infos[1].hash
    assert infos[0].records == infos[1].records


def test_rows_may_be_reused_by_the_caller_after_add(tmp_path: Path) -> None:
    row = make_row("a", 1000)
    data = row.blobs.data.tobytes()
    writer = PartWriter(open_store(str(tmp_path)), "a.parquet", "none")
    writer.add(row, source_nbytes=1, method="rtn", kept_reason=None, errors=None)
    row.blobs.data[:] = 0
    row.blobs.scales[:] = 0
    writer.close()
    assert pq.read_table(tmp_path / "a.parquet")["data"][0].as_py() == data


def test_an_aborted_or_failed_part_leaves_no_file(place: Place) -> None:
    writer = PartWriter(open_store(place.uri, place.storage), "weights/p.parquet", "none")
    writer.add(make_row("a", 2 * MIB), source_nbytes=1, method="rtn", kept_reason=None, errors=None)
    writer.abort()
    with (
        pytest.raises(KeyError),
        PartWriter(open_store(place.uri, place.storage), "weights/q.parquet", "none"),
    ):
        raise KeyError
    assert place.paths() == []


def test_a_disk_that_is_full_at_the_end_leaves_no_part(tmp_path: Path) -> None:
    (tmp_path / "full.parquet").symlink_to("/dev/full")
    with (
        pytest.raises(StorageError, match="disk is full"),
        PartWriter(open_store(str(tmp_path)), "full.parquet", "none") as writer,
    ):
        writer.close()
    assert list(tmp_path.iterdir()) == []


def test_a_value_that_parquet_cannot_hold_is_refused_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "MAX_VALUE_NBYTES", 2 * MIB)
    writer = PartWriter(open_store(str(tmp_path)), "a.parquet", "none")
    with pytest.raises(InvalidConfig, match="block_bytes") as caught:
        writer.add(make_row("big", 3 * MIB), source_nbytes=1, method="rtn", kept_reason=None, errors=None)
    assert caught.value.layer == "big"
    writer.abort()


def test_an_unknown_compression_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="snappy"):
        PartWriter(open_store(str(tmp_path)), "a.parquet", "snappy")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("compression", "copies"), [("none", 0.1), ("zstd", 2.6)])
def test_memory_beyond_the_row_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str, copies: float
) -> None:
    monkeypatch.setattr(arena, "_pages", arena.fresh)  # whose memory is traced
    row = make_row("a", 32 * MIB)
    writer = PartWriter(open_store(str(tmp_path)), "a.parquet", compression)
    usual = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(usual)  # with a peak of its own, whatever ran before
    pa.set_memory_pool(pool)
    tracemalloc.start()
    writer.add(row, source_nbytes=1, method="rtn", kept_reason=None, errors=None)
    python_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    pa.set_memory_pool(usual)
    writer.close()
    peak = (python_peak + pool.max_memory()) / row.blobs.data.nbytes
    assert peak < copies
    assert compression == "none" or peak > 1  # what is measured is what is taken


def test_writers_in_threads_do_not_disturb_each_other(tmp_path: Path) -> None:
    rows = [
        [make_row(f"{t}.{i}", n, row_start=i) for i, n in enumerate([10, 2 * MIB, 500])] for t in range(4)
    ]
    infos: dict[int, PartInfo] = {}

    def work(t: int) -> None:
        infos[t] = write(open_store(str(tmp_path)), f"{t}.parquet", "zstd", rows[t])

    threads = [threading.Thread(target=work, args=(t,)) for t in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for t in range(4):
        check_ranges((tmp_path / f"{t}.parquet").read_bytes(), rows[t], infos[t].records, "zstd")
