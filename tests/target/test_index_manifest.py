from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arrowquant_dist.errors import CorruptWeights, InvalidCheckpoint, NotFound
from arrowquant_dist.format.record import BlobRanges, RowRecord, StoredRange
from arrowquant_dist.format.row import RowHeader
from arrowquant_dist.metrics import ErrorSums
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.target.commit import commit_path, read_commit, write_commit
from arrowquant_dist.target.index import IndexEntry, read_index, write_index
from arrowquant_dist.target.manifest import Manifest, StoredFile
from arrowquant_dist.target.receipt import Receipt
from tests.storage.places import Place

PART = "weights/shard=00000/part-a.parquet"


def make_record(i: int = 0, **changes: Any) -> RowRecord:
    """changes: of the record; of its header, as `header={…}`."""
    at = 1000 * i
    header = RowHeader(
        layer_name=f"model.layers.{i}.weight",
        row_start=i,
        shape=(2, 3),
        layer_shape=(4, 3),
        row_dims=1,
        dtype="bfloat16",
        quant_type="int8",
        quant_axis=0,
        group_size=0,
        num_params=6,
        checksum="xxh3_128:00",
    )
    ranges = BlobRanges(
        data=StoredRange(at, 50, 60),
        scales=StoredRange(at + 100, 51, 61),
        zero_points=StoredRange(at + 200, 52, 62),
        chunk_digests=StoredRange(at + 300, 53, 63),
        compression="zstd",
    )
    record = RowRecord(header, ranges, 12, i, 0, "rtn", None, ErrorSums(6, 1.0, 1.0, 0.5, 0.25))
    return replace(record, **{**changes, "header": replace(header, **changes.get("header", {}))})


def make_receipt(shard: int = 0, rows: int = 2, attempt: str = "a", nbytes: int = 5000) -> Receipt:
    part = f"weights/shard={shard:05d}/part-{attempt}.parquet"
    records = tuple(make_record(i) for i in range(rows))
    return Receipt(
        shard,
        attempt,
        part,
        nbytes,
        "xxh3_128:ab",
        records,
        {"read": 0.5},
        1 << 20,
        "host-1/7",
        "host-1",
        1.5,
        9,
        8,
        1,
        1767323045.678,
        3 << 20,
        2,
    )


def make_index(*receipts: Receipt) -> bytes:
    return write_index((r.part, r.shard, row) for r in receipts for row in r.rows)


def make_manifest(*receipts: Receipt, index: bytes | None = None) -> Manifest:
    return Manifest.of(
        receipts,
        index=make_index(*receipts) if index is None else index,
        sidecars={"config.json": b"{}"},
        fingerprint="xxh3_128:f",
        source={"uri": "s3://b/m", "format": "safetensors", "files": []},
        config={"quant_type": "int8"},
        compression="zstd",
        aliases={"lm_head.weight": "embed.weight"},
    )


def test_an_index_gives_back_every_row_without_its_metrics() -> None:
    records = [
        make_record(0),
        make_record(
            1,
            header={"shape": (), "layer_shape": (), "quant_type": "fp16"},
            kept_reason="1-D",
            errors=None,
        ),
        make_record(2, header={"layer_name": "größe/😀", "row_start": 1 << 40, "num_params": 1 << 50}),
        make_record(3, ranges=replace(make_record().ranges, data=StoredRange(1 << 45, 0, 0))),
    ]
    rows = [(f"weights/shard={i:05d}/part-x.parquet", i, record) for i, record in enumerate(records)]
    want = [IndexEntry(part, shard, replace(record, errors=None)) for part, shard, record in rows]
    assert read_index(write_index(rows)) == want
    assert read_index(write_index([])) == []


def test_an_index_is_the_same_bytes_each_time_and_plain_parquet() -> None:
    data = make_index(make_receipt(0), make_receipt(1))
    assert data == make_index(make_receipt(0), make_receipt(1))
    table = pq.read_table(io.BytesIO(data))
    assert table["layer_name"].to_pylist() == [f"model.layers.{i}.weight" for i in (0, 1, 0, 1)]
    assert table["scales_offset"].to_pylist()[:2] == [100, 1100]


def test_a_row_of_a_long_index_takes_no_more_calls_than_one_of_a_short_index() -> None:
    record = make_record()

    def calls(rows: int) -> int:
        """Of functions, Python's and C's, to write and read an index of so many rows."""
        counted = 0

        def count(_frame: object, event: str, _argument: object) -> None:
            nonlocal counted
            counted += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            entries = read_index(write_index((PART, 0, record) for _ in range(rows)))
        finally:
            sys.setprofile(None)
        assert len(entries) == rows
        return counted

    calls(1)  # what is imported and compiled once
    short, long = calls(1_000), calls(5_000)
    assert long < 5.1 * short


def _without_column(data: bytes) -> bytes:
    out = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(data)).drop_columns(["scales_offset"]), out)
    return out.getvalue()


def _with_negative_offset(data: bytes) -> bytes:
    table = pq.read_table(io.BytesIO(data))
    place = table.column_names.index("data_offset")
    out = io.BytesIO()
    pq.write_table(table.set_column(place, "data_offset", pa.array([-1] * table.num_rows, pa.int64())), out)
    return out.getvalue()


def _with_flipped_byte(data: bytes) -> bytes:
    return data[:30] + bytes([data[30] ^ 0xFF]) + data[31:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:0],
        lambda data: data[:-10],
        _without_column,
        _with_negative_offset,
        _with_flipped_byte,
    ],
)
def test_a_damaged_index_is_refused(damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(CorruptWeights, match=r"index\.parquet is damaged"):
        read_index(damage(make_index(make_receipt())))


def test_a_receipt_survives_its_commit(place: Place) -> None:
    receipt = make_receipt()
    receipt = replace(receipt, rows=(*receipt.rows, make_record(5, errors=None, kept_reason="integers")))
    store = open_store(place.uri, place.storage)
    assert write_commit(store, receipt, "xxh3_128:f", lambda: True)
    found = read_commit(store, commit_path(receipt.shard), "xxh3_128:f")
    assert found is not None
    assert found.receipt == receipt


def test_a_manifest_sums_what_was_committed_and_survives_storage(place: Place) -> None:
    manifest = make_manifest(make_receipt(1, attempt="b"), make_receipt(0))
    place.put("manifest.json", manifest.to_bytes())
    assert Manifest.read(open_store(place.uri, place.storage)) == manifest
    assert [part.shard for part in manifest.parts] == [0, 1]
    totals = manifest.totals
    assert (totals.layers, totals.rows, totals.num_params, totals.source_nbytes) == (2, 4, 24, 48)
    assert totals.nbytes == 10_000
    assert manifest.versions["pyarrow"] == pa.__version__
    assert manifest.sidecars == (StoredFile.of("config.json", b"{}"),)
    head = json.loads(manifest.to_bytes())
    assert (head["format"], head["schema_version"], head["manifest_version"]) == ("arrowquant", "2", 2)


def test_an_absent_manifest_is_not_found(place: Place) -> None:
    with pytest.raises(NotFound):
        Manifest.read(open_store(place.uri, place.storage))


def _change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        *heads, last = path.split(".")
        inner: Any = values
        for head in heads:
            inner = inner[int(head) if head.isdigit() else head]
        inner[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_change("fingerprint", None), "fingerprint"),
        (_change("config", []), "config"),
        (_change("aliases", {"a": 1}), "aliases"),
        (_change("totals.rows", 7), "totals.rows"),
        (_change("totals.num_params", "6"), "totals.num_params"),
        (_change("index.path", "../../x"), "index.path"),
        (_change("index.nbytes", -1), "index.nbytes"),
        (_change("parts", {}), "parts"),
        (_change("parts", [1]), "parts"),
        (_change("parts.1.path", "/etc/passwd"), r"parts\[1\].path"),
        (_change("parts.1.path", PART), "parts"),
        (_change("parts.1.shard", 0), "parts"),
        (_change("parts.0.nbytes", 1.5), r"parts\[0\].nbytes"),
        (_change("sidecars", [{"path": "a/../../b", "nbytes": 1, "hash": ""}]), r"sidecars\[0\].path"),
    ],
)
def test_what_is_wrong_in_a_manifest_is_named(change: Callable[[dict[str, Any]], None], named: str) -> None:
    values = json.loads(make_manifest(make_receipt(0), make_receipt(1)).to_bytes())
    change(values)
    with pytest.raises(CorruptWeights, match=f"`{named}` of the manifest"):
        Manifest.from_dict(values, "s3://b/manifest.json")


@pytest.mark.parametrize("field", ["manifest_version", "schema_version"])
def test_a_manifest_of_a_newer_version_says_update(field: str) -> None:
    values = make_manifest(make_receipt()).to_dict() | {field: 3 if field == "manifest_version" else "10"}
    with pytest.raises(InvalidCheckpoint, match="newer arrowquant-dist"):
        Manifest.from_dict(json.loads(json.dumps(values)))


def test_a_manifest_of_an_earlier_release_has_no_hash_of_aliases_and_is_read() -> None:
    manifest = make_manifest(make_receipt())
    values = json.loads(manifest.to_bytes())
    del values["aliases_hash"]
    assert Manifest.from_dict(values) == manifest


def test_an_alias_that_is_not_what_its_hash_is_of_is_corrupt() -> None:
    values = json.loads(make_manifest(make_receipt()).to_bytes())
    values["aliases"] = {"lm_head.weight": "embed.weighs"}
    with pytest.raises(
        CorruptWeights, match="`aliases` of the manifest is not what its `aliases_hash` was computed from"
    ):
        Manifest.from_dict(values)


@pytest.mark.parametrize("data", [b"[]", b"{}", b'{"format": "icechunk"}', b"null"])
def test_somebody_elses_manifest_is_told_apart(data: bytes) -> None:
    with pytest.raises(InvalidCheckpoint, match="not written by arrowquant-dist"):
        Manifest.from_bytes(data, "x")


@pytest.mark.parametrize("data", [b"", b'{"format": "arrowq', b"\xff\xfe"])
def test_a_cut_manifest_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptWeights, match="not JSON"):
        Manifest.from_bytes(data, "x")


@pytest.mark.parametrize("name", ["kept_reason", "part", "row_start"])
def test_an_index_without_a_column_is_damaged_or_of_a_newer_release(name: str) -> None:
    table = pq.read_table(io.BytesIO(make_index(make_receipt())))
    newer = {**table.schema.metadata, b"arrowquant.index_version": b"2"}
    for metadata, kind, said in (
        (table.schema.metadata, CorruptWeights, name),
        (newer, InvalidCheckpoint, "index_version is 2"),
    ):
        out = io.BytesIO()
        pq.write_table(table.drop_columns([name]).replace_schema_metadata(metadata), out)
        with pytest.raises(kind, match=said):
            read_index(out.getvalue())


def test_the_index_is_checked_against_the_manifest(place: Place) -> None:
    receipt = make_receipt()
    index = make_index(receipt)
    place.put("index.parquet", index)
    entries = make_manifest(receipt).read_index(open_store(place.uri, place.storage))
    assert [entry.record.header.layer_name for entry in entries] == [
        row.header.layer_name for row in receipt.rows
    ]


@pytest.mark.parametrize(
    ("listed", "indexed", "message"),
    [
        (make_receipt(attempt="b"), make_receipt(attempt="a"), "does not list"),
        (make_receipt(nbytes=1352), make_receipt(), "beyond the end"),
        (make_receipt(rows=3), make_receipt(rows=2), "different numbers of rows"),
        (make_receipt(rows=1), make_receipt(rows=2), "different numbers of rows"),
    ],
)
def test_an_index_that_contradicts_the_manifest_is_refused(
    place: Place, listed: Receipt, indexed: Receipt, message: str
) -> None:
    index = make_index(indexed)
    place.put("index.parquet", index)
    with pytest.raises(CorruptWeights, match=message):
        make_manifest(listed, index=index).read_index(open_store(place.uri, place.storage))


def test_an_index_with_other_bytes_than_the_manifests_is_refused(place: Place) -> None:
    place.put("index.parquet", make_index(make_receipt(attempt="z")))
    with pytest.raises(CorruptWeights, match="is not what the manifest lists"):
        make_manifest(make_receipt()).read_index(open_store(place.uri, place.storage))


def test_reading_and_writing_an_index_imports_no_pandas() -> None:
    code = (
        "import sys\n"
        "from tests.target.test_index_manifest import make_receipt\n"
        "from arrowquant_dist.target.index import read_index, write_index\n"
        "receipt = make_receipt()\n"
        "before = 'pandas' in sys.modules\n"
        "read_index(write_index((receipt.part, 0, row) for row in receipt.rows))\n"
        "sys.exit(not before and 'pandas' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
