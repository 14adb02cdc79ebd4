"""Anything but a regular file in place of a file of a dataset is refused, and never taken for "nothing there"."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import BertModel

from arrowquant_dist import RunConfig, WeightLoader, load_model
from arrowquant_dist.config import QuantizationConfig
from arrowquant_dist.dataset.dataset import Dataset
from arrowquant_dist.driver import plan_only, quantize
from arrowquant_dist.errors import ArrowQuantError, NoRegularFile, TargetConflict
from arrowquant_dist.export import ExportOptions, export_dataset
from arrowquant_dist.report.render import load_report
from arrowquant_dist.verify import verify
from tests.sources import random_weights, save_checkpoint

CONFIG, RUN = QuantizationConfig("int8"), RunConfig(workers=1)


def put_folder(path: Path) -> None:
    path.mkdir()


def put_full_folder(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").write_text("mine")


def put_fifo(path: Path) -> None:
    os.mkfifo(path)


def put_dangling(path: Path) -> None:
    path.symlink_to("/mnt/not-there")


def put_loop(path: Path) -> None:
    path.symlink_to(path.name)


def put_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


ODD = (put_folder, put_full_folder, put_fifo, put_dangling, put_loop, put_device)
OF_EACH_SORT = (put_full_folder, put_fifo, put_loop)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    source = save_checkpoint(folder / "source", random_weights(2, 64, 512, torch.float32))
    (Path(source) / "config.json").write_text('{"a": 1}')
    quantize(source, str(folder / "target"), CONFIG, RUN)
    return folder


@pytest.fixture
def target(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "target", tmp_path / "target"))


def instead(path: Path, put: Callable[[Path], None]) -> None:
    path.unlink()
    put(path)


OPENING: dict[str, Callable[[Path, Path], object]] = {
    "Dataset.open": lambda target, _: Dataset.open(str(target)),
    "Dataset.unconfirmed": lambda target, _: WeightLoader(target),
    "load_model": lambda target, _: load_model(target, BertModel),
    "load_model, unverified": lambda target, _: load_model(target, BertModel, verify=False),
    "verify": lambda target, _: verify(str(target)),
    "report": lambda target, _: load_report(str(target)),
    "export": lambda target, out: export_dataset(str(target), str(out), ExportOptions("safetensors"), RUN),
    "quantize from it": lambda target, out: quantize(str(target), str(out), CONFIG, RUN),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("put", ODD, ids=lambda put: put.__name__)
@pytest.mark.parametrize("way", OPENING)
@pytest.mark.parametrize("run", ["with its run", "without"])
def test_an_odd_manifest_is_refused_wherever_a_dataset_is_opened(
    target: Path, tmp_path: Path, way: str, put: Callable[[Path], None], run: str
) -> None:
    instead(target / "manifest.json", put)
    if run == "without":
        shutil.rmtree(target / "run")
        if way == "report":
            (target / "report/report.json").unlink()
    with pytest.raises(ArrowQuantError) as told:
        OPENING[way](target, tmp_path / "out")
    assert told.value.exit_code == 2
    assert "manifest.json" in str(told.value)
    assert str(told.value).count("\n") == 0
    assert not (tmp_path / "out").exists()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("put", ODD, ids=lambda put: put.__name__)
@pytest.mark.parametrize("file", ["index.parquet", "part", "run/plan.arrow", "report/report.json"])
def test_verify_lists_what_is_no_file(target: Path, put: Callable[[Path], None], file: str) -> None:
    path = next(target.glob("weights/*/*.parquet")) if file == "part" else target / file
    instead(path, put)
    problems = verify(str(target)).problems
    assert [problem for problem in problems if problem.uri == str(path)] != []


@pytest.mark.timeout(60)
@pytest.mark.parametrize("put", ODD, ids=lambda put: put.__name__)
@pytest.mark.parametrize("file", ["index.parquet", "part"])
def test_reading_names_the_place(target: Path, put: Callable[[Path], None], file: str) -> None:
    path = next(target.glob("weights/*/*.parquet")) if file == "part" else target / file
    instead(path, put)
    with pytest.raises(ArrowQuantError) as told:
        for _ in WeightLoader(target):
            pass
    assert told.value.uri == str(path)
    assert path.is_dir() or isinstance(told.value, NoRegularFile)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("put", ODD, ids=lambda put: put.__name__)
def test_an_odd_report_is_not_a_missing_one(target: Path, put: Callable[[Path], None]) -> None:
    instead(target / "report/report.json", put)
    with pytest.raises(ArrowQuantError, match=r"report\.json: ") as told:
        load_report(str(target))
    assert told.value.exit_code == 2


RUNS = {"resume": RUN, "overwrite": RUN.replace(overwrite=True), "repair": RUN.replace(repair=True)}
WRITTEN = (
    "manifest.json",
    "index.parquet",
    "run/plan.arrow",
    "run/commits",
    "report/report.json",
    "report/report.md",
    "part",
    "config.json",
)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("put", OF_EACH_SORT, ids=lambda put: put.__name__)
@pytest.mark.parametrize("file", WRITTEN)
@pytest.mark.parametrize("way", [*RUNS, "plan"])
def test_a_run_on_a_target_with_one_is_refused_and_changes_nothing(
    made: Path, target: Path, way: str, file: str, put: Callable[[Path], None]
) -> None:
    places = {"part": "weights/*/*.parquet", "run/commits": "run/commits/*"}
    path = next(target.glob(places.get(file, file)))
    instead(path, put)
    before = sorted(target.rglob("*"))
    call = plan_only if way == "plan" else quantize
    with pytest.raises(ArrowQuantError) as told:
        call(str(made / "source"), str(target), CONFIG, RUNS.get(way, RUN))
    assert isinstance(told.value, TargetConflict | NoRegularFile)
    assert told.value.uri == str(path)
    assert told.value.exit_code == 2
    assert sorted(target.rglob("*")) == before


def test_when_it_is_removed_repair_makes_the_file_again(made: Path, target: Path) -> None:
    instead(target / "index.parquet", put_folder)
    (target / "index.parquet").rmdir()
    quantize(str(made / "source"), str(target), CONFIG, RUNS["repair"])
    assert verify(str(target)).is_sound


@pytest.mark.parametrize("put", [put_dangling, put_loop], ids=lambda put: put.__name__)
def test_a_bare_folder_with_a_link_in_the_place_of_a_part_is_not_a_smaller_dataset(
    target: Path, tmp_path: Path, put: Callable[[Path], None]
) -> None:
    bare = Path(shutil.copytree(target / "weights", tmp_path / "bare"))
    assert Dataset.open(str(bare)).layers
    put(bare / "more.parquet")
    with pytest.raises(ArrowQuantError, match=r"more\.parquet"):
        Dataset.open(str(bare))


@pytest.mark.parametrize("folder", ["run", "weights", "report"])
def test_a_folder_of_a_dataset_that_became_a_link_to_nothing_is_named(target: Path, folder: str) -> None:
    (target / folder).rename(target.parent / "moved")
    put_dangling(target / folder)
    problems = verify(str(target)).problems
    assert [p.kind for p in problems if p.uri == str(target / folder)] != []
    (target / "manifest.json").unlink()
    with pytest.raises(ArrowQuantError):
        Dataset.open(str(target))
