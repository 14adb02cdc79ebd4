"""Whatever happens to a dataset at rest, `verify` finds it, and says where."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arrowquant_dist.dataset.dataset import Dataset
from arrowquant_dist.dataset.layers import StoredBlock
from arrowquant_dist.errors import ArrowQuantError, CorruptWeights, IncompleteDataset, NotFound
from arrowquant_dist.format.record import RowRecord
from arrowquant_dist.format.row import HEADER_NAMES, RowHeader
from arrowquant_dist.target.index import read_index, write_index
from arrowquant_dist.target.manifest import hash_of
from arrowquant_dist.verify import VerifyReport, by_part, verify
from tests.format.encoder import Row, kept_row, random_row, write_v1, write_v2
from tests.target.targets import make_target

RNG = np.random.default_rng(11)
HEADER = RowHeader("w", 0, (1, 4), (100, 4), 1, "float32", "int8", 0, 0, 4, "xxh3_128:0")


def some_shards() -> list[list[Row]]:
    """Two shards: a layer in blocks across both, a kept one, and one that is large enough to be alone."""
    blocks = [
        random_row(RNG, "w", n, 9, "int4", group_size=4, symmetric=False, layer_shape=[5, 9], row_start=start)
        for start, n in ((0, 3), (3, 2))
    ]
    norm = kept_row("norm", RNG.standard_normal(8).astype("<f4"), "float32")
    big = kept_row("big", RNG.integers(0, 255, (300, 4096)).astype("u1"), "uint8")
    return [[norm, blocks[0]], [blocks[1], big, random_row(RNG, "head", 2, 3, "int8")]]


@pytest.fixture(scope="module", params=["none", "zstd"])
def made(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A dataset that nobody changes."""
    target, sidecars = tmp_path_factory.mktemp("made") / "t", {"config.json": b"{}"}
    make_target(target, some_shards(), compression=request.param, aliases={"tied": "head"}, sidecars=sidecars)
    return target


@pytest.fixture
def target(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "t")


def kinds(report: VerifyReport) -> set[str]:
    return {problem.kind for problem in report.problems}


def parts_of(target: Path) -> list[Path]:
    return sorted(target.glob("weights/*/*.parquet"))


def edit_manifest(target: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = target / "manifest.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_a_sound_target_has_no_problems_and_is_counted(target: Path) -> None:
    report = verify(str(target))
    assert report.problems == ()
    assert report.is_sound
    assert (report.objects, report.layers, report.rows) == (2, 4, 5)
    assert report.nbytes == sum(part.stat().st_size for part in parts_of(target))
    assert json.loads(json.dumps(report.to_dict()))["is_sound"] is True


def test_targets_behind_fsspec_are_verified_too() -> None:
    uri = make_target("memory://verify/target", some_shards())
    assert verify(uri).is_sound


def test_progress_ends_at_all_bytes(target: Path) -> None:
    seen: list[tuple[int, int]] = []
    verify(str(target), progress=lambda done, of: seen.append((done, of)))
    assert max(seen) == (seen[0][1], seen[0][1])


@pytest.mark.parametrize("every", [53, pytest.param(1, marks=pytest.mark.slow)])
def test_any_flipped_byte_of_a_part_is_found(tmp_path: Path, every: int) -> None:
    shards = [[random_row(RNG, "w", 2, 5, "int4", group_size=4, symmetric=False)]]
    make_target(tmp_path / "t", shards)
    [part] = parts_of(tmp_path / "t")
    sound = part.read_bytes()
    for offset in range(0, len(sound), every):
        content = bytearray(sound)
        content[offset] ^= 1 << offset % 8
        part.write_bytes(content)
        report = verify(str(tmp_path / "t"))
        assert "corrupt-weights" in kinds(report), offset
        assert all(
            problem.uri is not None and problem.uri.startswith(str(part)) for problem in report.problems
        )


@pytest.mark.parametrize("value", ["data", "scales", "zero_points", "chunk_digests"])
@pytest.mark.parametrize("end", ["first", "last"])
def test_a_flipped_byte_of_a_value_names_its_layer(target: Path, value: str, end: str) -> None:
    entry = next(
        e for e in read_index((target / "index.parquet").read_bytes()) if e.record.header.layer_name == "w"
    )
    place = getattr(entry.record.ranges, value)
    part = target / entry.part
    content = bytearray(part.read_bytes())
    content[place.offset if end == "first" else place.offset + place.stored_nbytes - 1] ^= 4
    part.write_bytes(content)
    report = verify(str(target))
    assert "w" in {problem.layer for problem in report.problems}
    assert {problem.layer for problem in report.problems} <= {None, "w"}
    with pytest.raises(CorruptWeights):
        Dataset.open(str(target)).read_rows("w", 0, 5)


@pytest.mark.parametrize("keep", [0, 4, 0.3, 0.9, -1])
def test_a_cut_part_is_found(target: Path, keep: float) -> None:
    part = parts_of(target)[1]
    content = part.read_bytes()
    part.write_bytes(content[: int(keep if keep in {0, 4, -1} else keep * len(content))])
    report = verify(str(target))
    assert any(
        problem.uri == str(part) and "bytes, but the manifest says" in problem.message
        for problem in report.problems
    )


def test_a_part_that_is_gone_is_found_with_its_layers(target: Path) -> None:
    parts_of(target)[1].unlink()
    report = verify(str(target))
    assert kinds(report) == {"incomplete-dataset"}
    assert {problem.layer for problem in report.problems} == {"w", "big", "head"}
    with pytest.raises(IncompleteDataset, match="part-0") as caught:
        Dataset.open(str(target)).read_rows("big", 0, 1)
    assert caught.value.layer == "big"


def test_swapped_parts_are_found(target: Path) -> None:
    first, second = parts_of(target)
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    uris = {problem.uri for problem in verify(str(target)).problems}
    assert uris == {str(first), str(second)}


def test_a_sound_part_of_another_run_is_found(target: Path, tmp_path: Path) -> None:
    make_target(tmp_path / "other", some_shards())
    part = parts_of(target)[0]
    part.write_bytes(parts_of(tmp_path / "other")[0].read_bytes())
    assert str(part) in {problem.uri for problem in verify(str(target)).problems}


MANIFEST_EDITS: dict[str, Callable[[dict[str, Any]], None]] = {
    "a part's hash": lambda m: m["parts"][0].update(hash="xxh3_128:" + "1" * 32),
    "a part's size": lambda m: m["parts"][0].update(nbytes=10**9),
    "a part's rows": lambda m: m["parts"][0].update(rows=1),
    "a part's path": lambda m: m["parts"][0].update(path="weights/shard=00000/part-9.parquet"),
    "a part left out": lambda m: m["parts"].pop(),
    "the index's hash": lambda m: m["index"].update(hash="xxh3_128:" + "1" * 32),
    "an alias of nothing": lambda m: m["aliases"].update(tied="nothing"),
    "an alias more": lambda m: m["aliases"].update(other="head"),
    "an alias over a layer": lambda m: m["aliases"].update(w="head"),
    "totals": lambda m: m["totals"].update(num_params=1),
    "source bytes": lambda m: m["totals"].update(source_nbytes=1),
    "config": lambda m: m["config"].update(quant_type="int2"),
    "fingerprint": lambda m: m.update(fingerprint="xxh3_128:" + "1" * 32),
    "source": lambda m: m["source"].update(uri="/models/other"),
    "compression": lambda m: m.update(compression="snappy"),
    "a sidecar": lambda m: m["sidecars"][0].update(hash="xxh3_128:" + "1" * 32),
    "a sidecar more": lambda m: m["sidecars"].append({"path": "x", "nbytes": 0, "hash": hash_of(b"")}),
    "its format": lambda m: m.update(format="other"),
    "a field less": lambda m: m.pop("totals"),
}


@pytest.mark.parametrize("what", MANIFEST_EDITS)
def test_an_edited_manifest_is_found(target: Path, what: str) -> None:
    edit_manifest(target, MANIFEST_EDITS[what])
    assert not verify(str(target)).is_sound


def test_a_manifest_that_is_not_json_is_found(target: Path) -> None:
    (target / "manifest.json").write_bytes(b"{")
    assert kinds(verify(str(target))) == {"corrupt-weights"}


def test_a_lost_manifest_is_incomplete(target: Path) -> None:
    (target / "manifest.json").unlink()
    assert kinds(verify(str(target))) == {"incomplete-dataset"}
    (target / "run/plan.arrow").unlink()  # copied without run/: now a folder of files
    assert kinds(verify(str(target))) == {"incomplete-dataset"}


@pytest.mark.parametrize("what", ["flip", "cut", "gone"])
def test_a_damaged_index_is_found(target: Path, what: str) -> None:
    path = target / "index.parquet"
    content = bytearray(path.read_bytes())
    if what == "gone":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content if what == "flip" else content[:-5])
    assert str(path) in {problem.uri for problem in verify(str(target)).problems}
    with pytest.raises((CorruptWeights, IncompleteDataset), match=r"index\.parquet"):
        Dataset.open(str(target))


def rewrite_index(target: Path, change: Callable[[list[Any]], list[Any]]) -> None:
    """An index that says another thing, with a manifest to match: only the content can tell."""
    path = target / "index.parquet"
    entries = change([(e.part, e.shard, e.record) for e in read_index(path.read_bytes())])
    data = write_index(entries)
    path.write_bytes(data)

    def match(manifest: dict[str, Any]) -> None:
        manifest["index"].update(nbytes=len(data), hash=hash_of(data))
        for part in manifest["parts"]:
            part["rows"] = sum(entry[0] == part["path"] for entry in entries)
        manifest["totals"]["rows"] = len(entries)

    edit_manifest(target, match)


def changed(entries: list[Any], layer: str, **fields: Any) -> list[Any]:
    """fields: of the header, or of the record itself."""

    def change(record: RowRecord) -> RowRecord:
        own = {name: value for name, value in fields.items() if name not in HEADER_NAMES}
        header = {name: value for name, value in fields.items() if name in HEADER_NAMES}
        return replace(record, **own, header=replace(record.header, **header))

    return [(p, s, change(r) if r.header.layer_name == layer else r) for p, s, r in entries]


INDEX_EDITS: dict[str, Callable[[list[Any]], list[Any]]] = {
    "a layer is left out": lambda entries: [e for e in entries if e[2].header.layer_name != "head"],
    "a block is left out": lambda entries: [e for e in entries if e[2].header.row_start == 0],
    "a row twice": lambda entries: [*entries, entries[-1]],
    "another name": lambda entries: changed(entries, "head", layer_name="tail"),
    "another dtype": lambda entries: changed(entries, "norm", dtype="int32"),
    "another shape": lambda entries: changed(entries, "norm", shape=(2, 4), layer_shape=(2, 4)),
    "another checksum": lambda entries: changed(entries, "norm", checksum="xxh3_128:" + "1" * 32),
    "another place": lambda entries: changed(entries, "head", row_in_group=9),
    "another row group": lambda entries: changed(entries, "big", row_group=7),
    "an unknown type": lambda entries: changed(entries, "big", quant_type="int5"),
}


@pytest.mark.parametrize("what", INDEX_EDITS)
def test_an_index_that_does_not_say_what_the_parts_hold_is_found(target: Path, what: str) -> None:
    rewrite_index(target, INDEX_EDITS[what])
    report = verify(str(target))
    assert {problem.layer for problem in report.problems} - {None}


@pytest.mark.parametrize("what", ["another dtype", "another shape"])
def test_the_parquet_rows_contradict_an_edited_index_also_without_a_plan(target: Path, what: str) -> None:
    (target / "run/plan.arrow").unlink()
    rewrite_index(target, INDEX_EDITS[what])
    problems = verify(str(target)).problems
    assert any(p.layer == "norm" and "the index and the Parquet file disagree" in p.message for p in problems)


def test_a_changed_sidecar_is_found(target: Path) -> None:
    (target / "config.json").write_bytes(b"[]")
    [problem] = verify(str(target)).problems
    assert problem.uri == str(target / "config.json")


def test_a_stray_file_among_the_parts_is_found(target: Path) -> None:
    stray = target / "weights" / "shard=00000" / "part-lost.parquet"
    stray.write_bytes(parts_of(target)[0].read_bytes())
    [problem] = verify(str(target)).problems
    assert (problem.kind, problem.uri) == ("stray-object", str(stray))
    assert str(stray) in str(problem)
    assert len(Dataset.open(str(target)).layers) == 4


def test_a_bare_file_is_verified_by_its_rows(tmp_path: Path) -> None:
    rows = [row for shard in some_shards() for row in shard]
    path = write_v2(tmp_path / "w.parquet", rows)
    report = verify(str(path))
    assert report.is_sound
    assert (report.objects, report.layers, report.rows) == (1, 4, 5)
    write_v2(path, [rows[0].but(data=bytes(32)), *rows[1:]])
    assert [problem.layer for problem in verify(str(path)).problems] == ["norm"]
    assert verify(str(write_v1(tmp_path / "v1.parquet", rows[:1]))).is_sound


def test_values_without_a_checksum_are_not_given_out(tmp_path: Path) -> None:
    """V1 has none; a V2 row from which it was taken, digests and all, is damaged."""
    row = random_row(RNG, "w", 2, 3, "int8")
    path = write_v2(tmp_path / "m.parquet", [row.but(checksum="", chunk_digests=b"")])
    with pytest.raises(CorruptWeights, match="checksum is missing"):
        Dataset.open(str(path))
    make_target(tmp_path / "indexed", [[row]])
    index = tmp_path / "indexed" / "index.parquet"
    table = pq.read_table(index)
    for name, empty in (("checksum", ""), ("chunk_digests_nbytes", 0), ("chunk_digests_stored_nbytes", 0)):
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.field(at), pa.array([empty], table.field(at).type))
    pq.write_table(table, index)
    manifest = json.loads((tmp_path / "indexed" / "manifest.json").read_bytes())
    manifest["index"] |= {"nbytes": index.stat().st_size, "hash": hash_of(index.read_bytes())}
    (tmp_path / "indexed" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CorruptWeights, match="checksum is missing"):
        Dataset.open(str(tmp_path / "indexed"))
    assert not verify(tmp_path / "indexed").is_sound


def test_an_impossible_row_beside_a_sound_one_is_found(tmp_path: Path) -> None:
    """In one row group, whose pages are for both of them."""
    good, bad = (random_row(RNG, name, 2, 3, "int8") for name in ("good", "bad"))
    path = write_v2(tmp_path / "m.parquet", [good, bad.but(dtype="rtn")], row_group_size=2)
    found = verify(path)
    assert {problem.layer for problem in found.problems} == {"bad"}
    assert "dtype 'rtn' is not known" in str(found.problems[0])


def test_a_row_that_cannot_be_read_says_why_each_time_and_so_do_its_neighbours(tmp_path: Path) -> None:
    rows = [kept_row(f"w{i}", np.arange(3000, dtype="<f4"), "float32") for i in range(3)]
    path = write_v2(tmp_path / "m.parquet", rows, row_group_size=3)
    data = bytearray(path.read_bytes())
    data[data.index(rows[0].columns["data"])] ^= 1
    path.write_bytes(data)
    dataset = Dataset.open(str(path))
    for name in ("w0", "w1", "w0", "w2"):
        with pytest.raises(CorruptWeights, match="CRC"):
            dataset.read_values(name, 0, 3)


def test_a_folder_of_bare_files_is_never_known_to_be_complete(tmp_path: Path) -> None:
    write_v2(tmp_path / "a.parquet", some_shards()[0][:1])
    (tmp_path / "b.parquet").write_bytes(b"no parquet")
    report = verify(str(tmp_path))
    assert [problem.kind for problem in report.problems] == ["incomplete-dataset", "corrupt-weights"]
    assert report.rows == 1


def test_nothing_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        verify(str(tmp_path / "nothing"))


def test_every_problem_reads_as_an_error(target: Path) -> None:
    parts_of(target)[0].unlink()
    for problem in verify(str(target)).problems:
        assert str(problem).startswith(f"layer {problem.layer!r}, {problem.uri}")
        assert issubclass(ArrowQuantError, Exception)


def test_each_block_is_given_to_its_part_in_one_pass() -> None:
    """2,000 parts of 200,000 rows: whatever looks at every block for every part never ends."""
    headers = [replace(HEADER, row_start=row) for row in range(100)]
    blocks = [StoredBlock(header, f"part-{row % 7}", 0, 0) for row, header in enumerate(headers)]
    once = iter(blocks)  # nobody can go through it a second time
    found = by_part(once)
    assert list(found) == [f"part-{part}" for part in range(7)]
    assert all(block.path == path for path, own in found.items() for block in own)
    assert sorted(block.header.row_start for own in found.values() for block in own) == list(range(100))


def test_tables_of_something_else_are_no_dataset(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "other.parquet")
    for place in (tmp_path, tmp_path / "other.parquet"):
        with pytest.raises(NotFound, match="none of a dataset's columns; give the target of a run"):
            verify(place)


def test_a_table_of_something_else_beside_a_dataset_is_a_problem(tmp_path: Path) -> None:
    write_v1(tmp_path / "a.parquet", [kept_row("a", np.ones((2, 2), np.float32), "float32")])
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "other.parquet")
    problems = verify(tmp_path).problems
    assert [p.uri for p in problems if p.kind == "not-found"] == [str(tmp_path / "other.parquet")]


@pytest.mark.parametrize("content", [b"", b"some text", b"PAR"])
def test_a_file_of_another_kind_is_no_dataset(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "notes.txt").write_bytes(content)
    with pytest.raises(NotFound, match="not a Parquet file, so not a dataset"):
        verify(tmp_path / "notes.txt")


def test_a_parquet_file_that_is_damaged_is_a_dataset_that_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "model.parquet").write_bytes(b"\0" * 64)
    (problem,) = verify(tmp_path / "model.parquet").problems
    assert problem.kind == CorruptWeights.kind
