"""Damaged parts of a finished dataset are made again, equal to what they were, and nothing else is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arrowquant_dist import QuantizationConfig, RunConfig, WeightLoader
from arrowquant_dist.driver import quantize
from arrowquant_dist.errors import (
    ArrowQuantError,
    IncompleteDataset,
    InvalidCheckpoint,
    InvalidConfig,
    TargetConflict,
)
from arrowquant_dist.storage.local import LocalStore
from arrowquant_dist.tensor import quantize_values
from arrowquant_dist.verify import verify
from tests.datasets import rows_of, weights_of
from tests.driver.test_stops import CHANGES, Death, Killed
from tests.servers.fixtures import Bucket
from tests.sources import random_weights, save_checkpoint
from tests.target.old_commits import as_version_3

CONFIG = QuantizationConfig()
RUN = RunConfig(workers=1, shard_bytes=64 << 10, engine="inline")
REPAIR = RUN.replace(repair=True)
Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A source, and its dataset, which nobody changes."""
    folder = tmp_path_factory.mktemp("made")
    source = save_checkpoint(folder / "source", random_weights(3, 64, 512, torch.float32))
    (Path(source) / "config.json").write_text('{"a": 1}')
    quantize(source, str(folder / "target"), CONFIG, RUN)
    return source, folder / "target"


@pytest.fixture
def source(made: tuple[str, Path]) -> str:
    return made[0]


@pytest.fixture
def target(made: tuple[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[1], tmp_path / "target"))


def gone(file: Path) -> None:
    file.unlink()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def zeroed(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 4
    file.write_bytes(data)


DAMAGES = [gone, cut, zeroed, flipped]


def parts(target: Path) -> dict[int, Path]:
    said = json.loads((target / "manifest.json").read_text())["parts"]
    return {part["shard"]: target / part["path"] for part in said}


def rows(target: Path) -> dict[Any, Any]:
    return {key: {name: row[name] for name in row if name != "file"} for key, row in rows_of(target).items()}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("shards", [[1], [0, 2], [0, 1, 2, 3, 4, 5]])
def test_damaged_parts_are_done_again_and_all_others_left_alone(
    source: str, made: tuple[str, Path], target: Path, damage: Damage, shards: list[int]
) -> None:
    before = parts(target)
    content = {shard: part.read_bytes() for shard, part in before.items()}
    stats = {shard: part.stat() for shard, part in before.items()}
    for shard in shards:
        damage(before[shard])
    outcome = quantize(source, str(target), CONFIG, REPAIR)
    assert outcome.damaged == tuple(before[shard].relative_to(target).as_posix() for shard in shards)
    assert not outcome.already_finished
    assert rows(target) == rows(made[1])  # every column of every row
    assert verify(str(target)).problems == ()
    after = parts(target)
    for shard, part in after.items():
        if shard in shards:
            assert part != before[shard]
            assert part.read_bytes() == content[shard]
        else:
            assert part == before[shard]
            assert (part.stat().st_ino, part.stat().st_mtime_ns) == (
                stats[shard].st_ino,
                stats[shard].st_mtime_ns,
            )
    assert sorted((target / "weights").rglob("*.parquet")) == sorted(after.values())
    assert quantize(source, str(target), CONFIG, RUN).already_finished
    assert quantize(source, str(target), CONFIG, REPAIR).damaged == ()


def test_of_a_dataset_whose_commits_are_of_version_3_only_what_is_damaged_is_done_again(
    source: str, made: tuple[str, Path], target: Path
) -> None:
    for commit in (target / "run/commits").iterdir():
        commit.write_bytes(as_version_3(commit.read_bytes()))
    assert quantize(source, str(target), CONFIG, REPAIR).damaged == ()
    before = parts(target)
    flipped(before[1])
    outcome = quantize(source, str(target), CONFIG, REPAIR)
    assert outcome.damaged == (before[1].relative_to(target).as_posix(),)
    assert rows(target) == rows(made[1])
    timeline = outcome.report.timeline
    assert timeline is not None
    assert [lane.first_shard for lane in timeline.lanes] == [(1,)]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "name",
    [
        "index.parquet",
        "config.json",
        "report/report.json",
        "report/report.html",
        "report/layers.parquet",
        "run/commits/00001.json",
        "run/commits/00000.json",
    ],
)
def test_whatever_is_damaged_the_dataset_is_sound_afterwards(
    source: str, made: tuple[str, Path], target: Path, damage: Damage, name: str
) -> None:
    before = parts(target)
    damage(target / name)
    outcome = quantize(source, str(target), CONFIG, REPAIR)
    assert outcome.damaged is not None
    assert rows(target) == rows(made[1])
    assert verify(str(target)).problems == ()
    assert (target / "config.json").read_text() == '{"a": 1}'
    assert json.loads((target / "report/report.json").read_text())["totals"]["layers"] == 6
    if "commits" not in name:
        assert parts(target) == before
        assert outcome.damaged == (name,)
    assert quantize(source, str(target), CONFIG, REPAIR).damaged == ()


@pytest.mark.parametrize("name", ["report.json", "report.md", "report.html", "layers.parquet"])
def test_a_report_of_which_a_file_is_gone_is_made_again(source: str, target: Path, name: str) -> None:
    gone(target / "report" / name)
    assert quantize(source, str(target), CONFIG, REPAIR).damaged == (f"report/{name}",)
    assert (target / "report" / name).exists()
    assert quantize(source, str(target), CONFIG, REPAIR).damaged == ()


@pytest.mark.parametrize(
    "damage", [zeroed, cut, *(lambda file, at=at: at_byte(file, at) for at in range(0, 2000, 90))]
)
def test_a_damaged_manifest_is_made_again_from_plan_and_commits(
    source: str, made: tuple[str, Path], target: Path, damage: Damage
) -> None:
    before = parts(target)
    damage(target / "manifest.json")
    assert quantize(source, str(target), CONFIG, REPAIR).report.totals.layers == 6
    assert rows(target) == rows(made[1])
    assert verify(str(target)).problems == ()
    assert parts(target) == before


@pytest.mark.parametrize("name", ["layers", "rows", "num_params", "source_nbytes", "nbytes"])
def test_a_total_that_is_another_number_is_damage(
    source: str, made: tuple[str, Path], target: Path, name: str
) -> None:
    manifest = target / "manifest.json"
    values = json.loads(manifest.read_text())
    values["totals"][name] += 1
    manifest.write_text(json.dumps(values))
    assert quantize(source, str(target), CONFIG, REPAIR).damaged == ("manifest.json",)
    assert verify(str(target)).problems == ()
    assert (
        json.loads(manifest.read_text())["totals"]
        == json.loads((made[1] / "manifest.json").read_text())["totals"]
    )


def at_byte(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def test_nothing_damaged_changes_nothing(source: str, target: Path) -> None:
    before = contents(target)
    outcome = quantize(source, str(target), CONFIG, REPAIR)
    assert outcome.already_finished
    assert outcome.damaged == ()
    assert contents(target) == before


def test_an_unfinished_target_is_resumed(source: str, made: tuple[str, Path], target: Path) -> None:
    (target / "manifest.json").unlink()
    gone(next(iter(target.rglob("part-*.parquet"))))
    outcome = quantize(source, str(target), CONFIG, REPAIR)
    assert not outcome.already_finished
    assert rows(target) == rows(made[1])


# What is there before a change is what is there after the one before it.
@pytest.mark.parametrize(
    "landed", [pytest.param(False, marks=pytest.mark.slow), True], ids=["before", "after"]
)
def test_a_repair_that_died_at_any_change_can_be_repeated(
    source: str,
    made: tuple[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    landed: bool,  # noqa: FBT001
) -> None:
    at, ended = 0, False
    while not ended:
        target = Path(shutil.copytree(made[1], tmp_path / f"{at}"))
        damaged = parts(target)[2]
        zeroed(damaged)
        zeroed(target / "index.parquet")
        death = Death(at, landed=landed)
        with monkeypatch.context() as patch:
            for name in CHANGES:
                patch.setattr(LocalStore, name, death(name, getattr(LocalStore, name)))
            try:
                quantize(source, str(target), CONFIG, REPAIR)
                ended = True
            except Killed:
                pass
        read_right_or_not_at_all(target, made[1])
        again = RUN if at % 2 and not (target / "manifest.json").exists() else REPAIR
        quantize(source, str(target), CONFIG, again)
        assert rows(target) == rows(made[1]), death.changes
        assert verify(str(target)).problems == (), death.changes
        at += 1
    assert at > 6


def read_right_or_not_at_all(target: Path, sound: Path) -> None:
    with WeightLoader(str(sound)) as loader:
        expected = dict(loader)
    try:
        loader = WeightLoader(str(target))
    except ArrowQuantError:
        return
    for name, weights in expected.items():
        try:
            found = loader[name]
        except ArrowQuantError:
            continue
        assert torch.equal(found, weights)


def test_another_config_or_source_is_refused(source: str, target: Path, tmp_path: Path) -> None:
    zeroed(parts(target)[0])
    before = contents(target)
    with pytest.raises(TargetConflict, match="quant_type: was 'int8', is 'int4'"):
        quantize(source, str(target), CONFIG.replace(quant_type="int4"), REPAIR)
    other = shutil.copytree(source, tmp_path / "other")
    with pytest.raises(TargetConflict, match="source: was"):
        quantize(str(other), str(target), CONFIG, REPAIR)
    assert contents(target) == before


def test_rows_that_come_out_otherwise_are_refused_and_the_dataset_stays(
    source: str, made: tuple[str, Path], target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = parts(target)
    zeroed(before[1])
    manifest = (target / "manifest.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("arrowquant_dist.worker.shard.quantize_values", otherwise)
        with pytest.raises(
            InvalidCheckpoint, match="its rows, quantized again, differ from those recorded for the dataset"
        ):
            quantize(source, str(target), CONFIG, REPAIR)
    assert (target / "manifest.json").read_bytes() == manifest
    assert not before[1].parent.exists()
    quantize(source, str(target), CONFIG, REPAIR)
    assert rows(target) == rows(made[1])


def otherwise(values: Any, *given: Any, **named: Any) -> Any:
    """As other code would make the rows of the same source."""
    return quantize_values(np.zeros_like(values), *given, **named)


@pytest.mark.parametrize("damage", [gone, zeroed])
def test_a_shard_of_which_index_and_commit_are_gone_is_held_to_the_hash_in_the_manifest(
    source: str, made: tuple[str, Path], target: Path, monkeypatch: pytest.MonkeyPatch, damage: Damage
) -> None:
    before = parts(target)
    for name in ("index.parquet", "run/commits/00001.json"):
        damage(target / name)
    manifest = (target / "manifest.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("arrowquant_dist.worker.shard.quantize_values", otherwise)
        with pytest.raises(
            InvalidCheckpoint, match="its rows, quantized again, differ from those recorded for the dataset"
        ):
            quantize(source, str(target), CONFIG, REPAIR)
    assert (target / "manifest.json").read_bytes() == manifest
    assert [*(target / "weights/shard=00001").glob("*")] in ([], [before[1]])
    quantize(source, str(target), CONFIG, REPAIR)
    assert rows(target) == rows(made[1])
    assert verify(str(target)).problems == ()


def test_what_a_stopped_repair_has_committed_says_nothing_of_what_the_dataset_had(
    source: str, made: tuple[str, Path], target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither index nor commit of the shard are left, and other code has done it again and was killed."""
    for name in ("index.parquet", "run/commits/00001.json"):
        gone(target / name)
    with monkeypatch.context() as patch:
        patch.setattr("arrowquant_dist.worker.shard.quantize_values", otherwise)
        patch.setattr("arrowquant_dist.driver.repair.Repair.make_room", killed)
        with pytest.raises(Killed):
            quantize(source, str(target), CONFIG, REPAIR)
    assert (target / "run/commits/00001.json").exists()
    quantize(source, str(target), CONFIG, REPAIR)
    assert rows(target) == rows(made[1])
    assert verify(str(target)).problems == ()


def killed(*_: object) -> None:
    raise Killed


def test_a_shard_of_which_nothing_is_recorded_is_refused_and_everything_stays(
    source: str, made: tuple[str, Path], target: Path
) -> None:
    zeroed(target / "manifest.json")
    gone(target / "run/commits/00001.json")
    before = contents(target)
    with pytest.raises(
        IncompleteDataset,
        match=r"1 of the dataset's shards \(1\) can't be repaired, since manifest and commit, .* --overwrite",
    ):
        quantize(source, str(target), CONFIG, REPAIR)
    assert contents(target) == before
    quantize(source, str(target), CONFIG, RUN.replace(overwrite=True))
    assert rows(target) == rows(made[1])


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_sidecar_is_copied_again_only_if_it_is_the_one_that_the_manifest_has(
    source: str, target: Path, monkeypatch: pytest.MonkeyPatch, damage: Damage
) -> None:
    damage(target / "config.json")
    before = contents(target)
    with monkeypatch.context() as patch:
        patch.setattr("arrowquant_dist.driver.places.published", lambda *_: b'{"a": 2, "b": 3}')
        with pytest.raises(
            InvalidCheckpoint,
            match=r"config\.json: it is damaged, .* \(was 8 bytes, xxh3_128:.*; is 16 bytes, xxh3_128:.*",
        ):
            quantize(source, str(target), CONFIG, REPAIR)
    assert contents(target) == before
    assert quantize(source, str(target), CONFIG, REPAIR).damaged == ("config.json",)
    assert verify(str(target)).problems == ()
    assert (target / "config.json").read_text() == '{"a": 1}'


def test_a_sound_sidecar_stays_whatever_the_source_has_now(
    source: str, made: tuple[str, Path], target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeroed(parts(target)[1])
    monkeypatch.setattr("arrowquant_dist.driver.places.published", lambda *_: b'{"a": 2}')
    quantize(source, str(target), CONFIG, REPAIR)
    assert (target / "config.json").read_text() == '{"a": 1}'
    assert rows(target) == rows(made[1])
    assert verify(str(target)).problems == ()


@pytest.mark.parametrize("field", ["nbytes", "hash"])
def test_a_sidecar_that_is_as_the_source_has_it_is_sound_and_the_manifest_damaged(
    source: str, target: Path, field: str
) -> None:
    manifest = target / "manifest.json"
    values = json.loads(manifest.read_text())
    values["sidecars"][0][field] = {"nbytes": 9, "hash": "xxh3_128:0"}[field]
    manifest.write_text(json.dumps(values))
    quantize(source, str(target), CONFIG, REPAIR)
    assert verify(str(target)).problems == ()
    assert (target / "config.json").read_text() == '{"a": 1}'


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_ordinary_command_on_a_dataset_that_lacks_a_part_names_repair(source: str, target: Path) -> None:
    gone(parts(target)[1])
    with pytest.raises(IncompleteDataset, match=r"1 part of the dataset is missing or cut off .*--repair"):
        quantize(source, str(target), CONFIG, RUN)


@pytest.mark.parametrize("damage", [gone, cut])
@pytest.mark.parametrize(
    "name", ["index.parquet", "config.json", "report/report.md", "report/layers.parquet"]
)
def test_the_ordinary_command_does_not_call_a_dataset_finished_that_lacks_a_file(
    source: str, made: tuple[str, Path], target: Path, damage: Damage, name: str
) -> None:
    damage(target / name)
    with pytest.raises(
        IncompleteDataset, match=rf"1 file .* missing or of another size \({name}\); quantize with --repair"
    ):
        quantize(source, str(target), CONFIG, RUN)
    assert quantize(source, str(target), CONFIG, REPAIR).damaged == (name,)
    assert quantize(source, str(target), CONFIG, RUN).already_finished
    assert rows(target) == rows(made[1])


def test_a_dataset_whose_first_part_is_gone_is_verified_by_name(source: str, target: Path) -> None:
    first = parts(target)[0]
    gone(first)
    problems = verify(str(target)).problems
    assert {problem.uri for problem in problems} == {str(first)}
    assert {problem.kind for problem in problems} == {"incomplete-dataset"}
    with pytest.raises(IncompleteDataset, match="parts that are gone"):
        WeightLoader(str(target))


def test_without_its_plan_a_damaged_dataset_is_refused_and_a_sound_one_is_sound(
    source: str, target: Path
) -> None:
    shutil.rmtree(target / "run")
    assert verify(str(target)).problems == ()
    zeroed(parts(target)[1])
    with pytest.raises(
        IncompleteDataset, match=r"damaged: weights/shard=00001/.*the dataset's plan .* is damaged or gone"
    ):
        quantize(source, str(target), CONFIG, REPAIR)


def test_repair_and_overwrite_exclude_each_other() -> None:
    with pytest.raises(InvalidConfig, match=r"repair.* keeps what is sound"):
        RunConfig(repair=True, overwrite=True)


def test_a_dataset_in_a_bucket_is_repaired(made: tuple[str, Path], bucket: Bucket, tmp_path: Path) -> None:
    source, local = made
    uri, run = f"{bucket.uri}/target", REPAIR.replace(storage_options=bucket.storage_options)
    bucket.objects.upload_folder(local, uri)
    part = parts(local)[1].relative_to(local).as_posix()
    bucket.objects.put(f"{uri}/{part}", bytes((local / part).stat().st_size))
    assert quantize(source, uri, CONFIG, run).damaged == (part,)
    assert quantize(source, uri, CONFIG, run).damaged == ()
    stored = bucket.objects.download_folder(uri, tmp_path / "stored")
    assert weights_of(stored) == weights_of(local)
    assert verify(str(stored)).problems == ()
