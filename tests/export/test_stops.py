"""An export that dies at any change of its output: the same command then ends with the output of an undisturbed one."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from arrowquant_dist import RunConfig
from arrowquant_dist.config import Storage
from arrowquant_dist.export import Exported, ExportOptions, export_dataset
from arrowquant_dist.storage.base import ObjectWriter, Store
from arrowquant_dist.storage.local import LocalStore
from arrowquant_dist.storage.open import open_store
from tests.conftest import CHECKOUT
from tests.datasets import copy_target
from tests.driver.test_stops import CHANGES, Killed
from tests.export.datasets import made_dataset
from tests.servers.fixtures import Bucket
from tests.sources import random_weights

OPTIONS = ExportOptions(max_file_bytes="1MiB")
RUN = RunConfig(workers=1, engine="inline")


class Death:
    """Strikes at the n-th change of the output, before or after it lands; from then on nothing is tidied up."""

    def __init__(self, at: int, *, landed: bool) -> None:
        self.at, self.landed = at, landed
        self.changes: list[str] = []

    @property
    def has_struck(self) -> bool:
        return len(self.changes) > self.at

    def change(self, what: str, own: Callable[[], Any]) -> Any:
        self.changes.append(what)
        if self.has_struck and not self.landed:
            raise Killed
        result = own()
        if self.has_struck:
            raise Killed
        return result

    def method(self, name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        def dying(store: Store, paths: Any, *data: bytes) -> Any:
            paths = paths if isinstance(paths, (str, dict)) else [*paths]
            if not paths:
                return own(store, paths, *data)
            return self.change(f"{name} {paths}", lambda: own(store, paths, *data))

        return dying

    def opener(self, own: Callable[..., ObjectWriter]) -> Callable[..., ObjectWriter]:
        def open_dying(store: Store, path: str) -> ObjectWriter:
            writer = own(store, path)
            close, abort = writer.close, writer.abort
            writer.close = lambda: self.change(f"close {path}", close)  # type: ignore[method-assign]
            writer.abort = lambda: None if self.has_struck else abort()  # type: ignore[method-assign]
            return writer

        return open_dying


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    side_files = {"config.json": b'{"a": 1}', "tokenizer.json": b"{}", "README.md": b"# a model"}
    tensors = random_weights(3, 512, 512, torch.float32)
    return made_dataset(tmp_path_factory.mktemp("stops"), tensors, side_files=side_files)


@pytest.fixture(params=["local", "memory"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    name = f"/export-stops-{uuid.uuid4().hex}"
    yield str(tmp_path / "out") if request.param == "local" else f"memory:/{name}"
    fs = fsspec.filesystem("memory")
    for path in fs.find(name):
        fs.rm_file(path)


def dies(
    dataset: str,
    out: str,
    death: Death,
    monkeypatch: pytest.MonkeyPatch,
    options: ExportOptions,
    run: RunConfig,
) -> bool:
    """Whether it struck before all was done."""
    kind: type[Store] = LocalStore if "://" not in out else type(open_store(out))
    with monkeypatch.context() as patch:
        for name in CHANGES:
            patch.setattr(kind, name, death.method(name, getattr(kind, name)))
        patch.setattr(kind, "open_new", death.opener(kind.open_new))
        try:
            export_dataset(dataset, out, options, run)
        except Killed:
            return True
    return False


def contents(out: str, storage: Storage = RUN.target_storage) -> dict[str, bytes]:
    store = open_store(out, storage)
    return {info.path: store.read(info.path) for info in store.list()}


# What is there before a change is what is there after the one before it.
@pytest.mark.parametrize(
    "landed", [pytest.param(False, marks=pytest.mark.slow), True], ids=["before", "after"]
)
def test_the_same_command_completes_what_died_at_any_change(
    dataset: str, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, landed: bool
) -> None:
    export_dataset(dataset, str(tmp_path / "quiet"), OPTIONS, RUN)
    quiet = contents(str(tmp_path / "quiet"))
    at = 0
    while True:
        here, death = f"{out}/{at}", Death(at, landed=landed)
        if not dies(dataset, here, death, monkeypatch, OPTIONS, RUN):
            break
        left, last = contents(here), death.changes[-1]
        weights = {path for path in quiet if path.endswith(".safetensors")}
        assert ("export.json" in left) <= ("export.json" in last or "delete" in last), last
        assert ("config.json" in left) <= (weights <= left.keys()), last
        assert not export_dataset(dataset, here, OPTIONS, RUN).already_finished or "export.json" in left
        assert contents(here) == quiet, last
        at += 1
    assert at >= 9  # 4 files of weights, config, tokenizer, README, index, export.json


def test_an_overwrite_that_died_at_any_change_can_be_repeated(
    dataset: str, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_dataset(dataset, str(tmp_path / "quiet"), OPTIONS, RUN)
    quiet = contents(str(tmp_path / "quiet"))
    overwriting = ExportOptions(max_file_bytes="1MiB", overwrite=True)
    export_dataset(dataset, f"{out}/before", ExportOptions(), RUN)
    at = 0
    while True:
        here, death = f"{out}/{at}", Death(at, landed=True)
        copy_target(f"{out}/before", here)
        if not dies(dataset, here, death, monkeypatch, overwriting, RUN):
            break
        export_dataset(dataset, here, overwriting, RUN)
        assert contents(here) == quiet, death.changes[-1]
        at += 1
    assert at >= 14  # 5 that are deleted besides


def test_from_s3_to_s3_it_resumes_and_leaves_no_upload_behind(
    dataset: str, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_dataset(dataset, str(tmp_path / "quiet"), OPTIONS, RUN)
    quiet = contents(str(tmp_path / "quiet"))
    there = open_store(f"{bucket.uri}/dataset", Storage(bucket.storage_options))
    for path, data in contents(dataset).items():
        there.write(path, data)
    run = RUN.replace(storage_options=bucket.storage_options)
    for at in (0, 2, 8):
        here = f"{bucket.uri}/out-{at}"
        assert dies(f"{bucket.uri}/dataset", here, Death(at, landed=at == 2), monkeypatch, OPTIONS, run)
        export_dataset(f"{bucket.uri}/dataset", here, OPTIONS, run)
        found = contents(here, run.target_storage)
        assert {path: found[path] for path in found if path != "export.json"} == {
            path: quiet[path] for path in quiet if path != "export.json"
        }
        assert b"xxh3_128" in found["export.json"]
        assert not open_store(here, run.target_storage).begun_uploads()


_KILLED = """
import os, signal, sys
from arrowquant_dist import RunConfig
from arrowquant_dist.export import ExportOptions, export_dataset, worker
own, left = worker._HashedFile.add, [int(sys.argv[3])]
def add(self, *part):
    own(self, *part)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
worker._HashedFile.add = add
export_dataset(sys.argv[1], sys.argv[2], ExportOptions(max_file_bytes="1MiB"), RunConfig(workers=1, engine="inline"))
"""


def test_a_process_killed_in_the_midst_of_files_is_resumed_and_whole_files_are_kept(
    dataset: str, tmp_path: Path
) -> None:
    export_dataset(dataset, str(tmp_path / "quiet"), OPTIONS, RUN)
    out = tmp_path / "out"
    died = subprocess.run([sys.executable, "-c", _KILLED, dataset, str(out), "4"], cwd=CHECKOUT, check=False)
    assert died.returncode == -signal.SIGKILL
    kept = {path: path.stat() for path in out.glob("model-*.safetensors")}
    left = [path for path in out.iterdir() if path not in kept]
    assert 0 < len(kept) < 4
    assert left
    assert all(path.name.startswith(".model-") for path in left)
    export_dataset(dataset, str(out), OPTIONS, RUN)
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in kept} == {
        path: (stat.st_ino, stat.st_mtime_ns) for path, stat in kept.items()
    }
    assert contents(str(out)) == contents(str(tmp_path / "quiet"))


_KILLED_ANYWHERE = """
import json, os, signal, sys
from arrowquant_dist import RunConfig
from arrowquant_dist.export import ExportOptions, export_dataset
from arrowquant_dist.storage.base import ObjectWriter
from arrowquant_dist.storage.local import LocalStore
from arrowquant_dist.storage.remote.objects import RemoteStore
dataset, out, at, options = sys.argv[1:]
left = [int(at)]
def counting(own):
    def counted(*arguments):
        result = own(*arguments)
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return counted
for name in ("write", "close"):
    setattr(ObjectWriter, name, counting(getattr(ObjectWriter, name)))
for kind in (LocalStore, RemoteStore):
    for name in ("read_into", "open_new", "create", "delete", "list"):
        setattr(kind, name, counting(getattr(kind, name)))
run = RunConfig(workers=2, engine="inline", storage_options=json.loads(options), transfer={"upload_bytes": "5MiB"})
export_dataset(dataset, out, ExportOptions("v1", max_file_bytes="12MiB"), run)
print(int(at) - left[0])
"""
_NEVER = 1 << 30


def _run_killed(dataset: str, out: str, at: int, options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _KILLED_ANYWHERE, dataset, out, str(at), json.dumps(options)]
    return subprocess.run(command, cwd=CHECKOUT, check=False, capture_output=True, text=True)


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two files of 10 MiB as V1, so that each is an upload of several parts."""
    tensors = {
        f"{i}.weight": torch.randn(1280, 2048, generator=torch.Generator().manual_seed(i)) for i in (0, 1)
    }
    run = RunConfig(block_bytes=1 << 20, shard_bytes=4 << 20)
    return made_dataset(tmp_path_factory.mktemp("larger"), tensors, run=run)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_process_killed_at_any_moment_is_completed_and_leaves_nothing_else(
    larger: str, place: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """By SIGKILL, right after an operation on storage: a read, a write, a part of an upload, a name, the sweeping."""
    source, root, options = larger, str(tmp_path), dict[str, Any]()
    if place == "s3":
        bucket: Bucket = request.getfixturevalue("bucket")
        source, root, options = f"{bucket.uri}/dataset", bucket.uri, bucket.storage_options
        there = open_store(source, Storage(options))
        for path, data in contents(larger).items():
            there.write(path, data)
    quiet = _run_killed(source, f"{root}/quiet", _NEVER, options)
    assert quiet.returncode == 0, quiet.stderr
    operations = int(quiet.stdout)
    expected = contents(f"{root}/quiet", Storage(options))
    assert len(expected) == 4  # two of weights, config.json, export.json
    for at in sorted(random.Random(5).sample(range(1, operations), 6)):  # noqa: S311 - no secret
        out = f"{root}/out-{at}"
        died = _run_killed(source, out, at, options)
        assert died.returncode == -signal.SIGKILL, (at, died.stderr)
        again = _run_killed(source, out, _NEVER, options)
        assert again.returncode == 0, (at, again.stderr)
        assert contents(out, Storage(options)) == expected, at
        assert not open_store(out, Storage(options)).begun_uploads(), at


def test_two_of_the_same_export_to_s3_at_once_end_in_one_output(
    dataset: str, bucket: Bucket, tmp_path: Path
) -> None:
    export_dataset(dataset, str(tmp_path / "quiet"), OPTIONS, RUN)
    out, run = f"{bucket.uri}/out", RUN.replace(workers=2, storage_options=bucket.storage_options)
    start = threading.Barrier(2)

    def drive(_: int) -> Exported:
        start.wait()
        return export_dataset(dataset, out, OPTIONS, run)

    with ThreadPoolExecutor(2) as drivers:
        first, second = drivers.map(drive, range(2))
    assert first.record == second.record
    assert contents(out, run.target_storage) == contents(str(tmp_path / "quiet"))
    assert not open_store(out, run.target_storage).begun_uploads()
