"""An export that stops dead at any change of its output: the same command then ends in that of an undisturbed one."""

from __future__ import annotations

import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from arrowquant_dist import RunConfig
from arrowquant_dist.config import Storage
from arrowquant_dist.export import ExportOptions, export_dataset
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
def add(self, step, packed):
    own(self, step, packed)
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
