"""An export on Ray whose own process is stopped in the middle: the same command then ends as an undisturbed one
does."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch

from arrowquant_dist import RunConfig
from arrowquant_dist.config import Storage
from arrowquant_dist.export import ExportOptions, export_dataset
from arrowquant_dist.storage.base import Store
from arrowquant_dist.storage.open import open_store
from tests.export.datasets import made_dataset
from tests.integration.program import end, run, start, wait_for
from tests.processes import actor_processes
from tests.servers.fixtures import Bucket
from tests.sources import random_weights

_FILES = 48


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def whole_files(out: Path) -> dict[str, tuple[int, int]]:
    """{name: inode and time} of files of weights under their names."""
    stats = {file.name: file.stat() for file in out.glob("model-*.safetensors")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def between_buckets(dataset: str, bucket: Bucket, folder: Path) -> tuple[list[str], Store]:
    """The command of an export from S3 to S3 on Ray, and its output."""
    places, config = (f"{bucket.uri}/dataset", f"{bucket.uri}/out"), folder / "run.yaml"
    bucket.objects.upload_folder(Path(dataset), places[0])
    config.write_text(json.dumps({"run": {"storage_options": bucket.storage_options}}))
    command = ["export", *places, "--format", "safetensors", "--max-file-bytes", "2MiB"]
    command += ["--engine", "ray", "--workers", "2", "--config", str(config)]
    return command, open_store(places[1], Storage(bucket.storage_options))


def assert_is_undisturbed(out: Store, dataset: str, folder: Path) -> None:
    """`out` has what an export by one worker to local disk writes, and no upload that was begun."""
    options = ExportOptions(max_file_bytes="2MiB")
    export_dataset(dataset, folder / "quiet", options, RunConfig(engine="inline", workers=1))
    quiet = contents(folder / "quiet")
    found = {info.path: out.read(info.path) for info in out.list()}
    assert found.pop("export.json") != quiet.pop("export.json")  # they name the dataset's place
    assert found == quiet
    assert not out.begun_uploads()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return made_dataset(tmp_path_factory.mktemp("stopped"), random_weights(_FILES, 512, 1024, torch.float32))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=lambda how: how.name)
def test_the_same_command_completes_it_and_keeps_what_was_whole(
    dataset: str, tmp_path: Path, how: signal.Signals
) -> None:
    options = ExportOptions(max_file_bytes="2MiB")
    export_dataset(dataset, tmp_path / "quiet", options, RunConfig(engine="inline", workers=1))
    out = tmp_path / "out"
    command = ["export", dataset, out, "--format", "safetensors", "--max-file-bytes", "2MiB"]
    command += ["--engine", "ray", "--workers", "2"]
    driver = start(*command)
    wait_for(lambda: len(whole_files(out)) >= 3, driver)
    driver.send_signal(how)
    stopped = end(driver)
    assert stopped.returncode == (130 if how == signal.SIGINT else -how), stopped.stderr
    kept = whole_files(out)
    assert len(kept) >= 3
    assert "export.json" not in contents(out)
    if how == signal.SIGINT:
        assert "run the same command again" in stopped.stderr
        assert kept.keys() == contents(out).keys()  # nothing of an unfinished file
    again = run(*command)
    assert again.returncode == 0, again.stderr
    assert contents(out) == contents(tmp_path / "quiet")
    assert {name: state for name, state in whole_files(out).items() if name in kept} == kept


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=lambda how: how.name)
def test_from_s3_to_s3_the_same_command_completes_it_and_leaves_no_upload_behind(
    dataset: str, bucket: Bucket, tmp_path: Path, how: signal.Signals
) -> None:
    command, out = between_buckets(dataset, bucket, tmp_path)
    driver = start(*command)
    wait_for(lambda: len([*out.list()]) >= 3, driver)
    driver.send_signal(how)
    stopped = end(driver)
    assert stopped.returncode == (130 if how == signal.SIGINT else -how), stopped.stderr
    again = run(*command)
    assert again.returncode == 0, again.stderr
    assert_is_undisturbed(out, dataset, tmp_path)


@pytest.mark.slow
def test_an_actor_killed_between_two_buckets_costs_no_file_and_leaves_no_upload_behind(
    dataset: str, bucket: Bucket, tmp_path: Path
) -> None:
    command, out = between_buckets(dataset, bucket, tmp_path)
    driver = start(*command)
    wait_for(lambda: len([*out.list()]) >= 3, driver)
    killed = actor_processes()
    for actor in killed:
        actor.kill()
    ended = end(driver)
    assert killed
    assert ended.returncode == 0, ended.stderr
    assert_is_undisturbed(out, dataset, tmp_path)
