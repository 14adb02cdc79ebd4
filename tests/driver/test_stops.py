"""A driver that dies at any write: the same command then ends with the dataset of an undisturbed run."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from arrowquant_dist import QuantizationConfig, RunConfig
from arrowquant_dist.dataset.dataset import Dataset
from arrowquant_dist.driver import quantize
from arrowquant_dist.errors import TargetConflict
from arrowquant_dist.storage.base import Store
from arrowquant_dist.storage.local import LocalStore
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.verify import verify
from tests.datasets import copy_target
from tests.sources import random_weights, save_checkpoint

CONFIG = QuantizationConfig()
RUN = RunConfig(workers=1, shard_bytes=64 << 10, engine="inline")
CHANGES = ("create", "write", "delete", "delete_unchanged", "abandon")


class Killed(BaseException):
    """What no handler is prepared for, as none is for SIGKILL."""


class Death:
    """Strikes the process at its n-th change of the target, before or after the change lands."""

    def __init__(self, at: int, *, landed: bool) -> None:
        self.at, self.landed = at, landed
        self.changes: list[str] = []

    def __call__(self, name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        def dying(store: Store, paths: Any, *data: bytes) -> Any:
            if name not in ("create", "write") and not paths:
                return None
            self.changes.append(f"{name} {paths}")
            if len(self.changes) > self.at and not self.landed:
                raise Killed
            result = own(store, paths, *data)
            if len(self.changes) > self.at:
                raise Killed
            return result

        return dying


@pytest.fixture
def source(tmp_path: Path) -> str:
    source = save_checkpoint(tmp_path / "source", random_weights(3, 64, 512, torch.float32))
    (Path(source) / "config.json").write_text('{"a": 1}')
    return source


@pytest.fixture(params=["local", "memory"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    name = f"/stops-{uuid.uuid4().hex}"
    yield str(tmp_path / "out") if request.param == "local" else f"memory:/{name}"
    fs = fsspec.filesystem("memory")
    for path in fs.find(name):
        fs.rm_file(path)


def store_type(target: str) -> type[Store]:
    return LocalStore if not target.startswith("memory:") else type(open_store(target))


def dies(
    source: str, target: str, death: Death, monkeypatch: pytest.MonkeyPatch, run: RunConfig = RUN
) -> bool:
    """Whether it struck before all was done."""
    with monkeypatch.context() as patch:
        for name in CHANGES:
            patch.setattr(store_type(target), name, death(name, getattr(store_type(target), name)))
        try:
            quantize(source, target, CONFIG, run)
        except Killed:
            return True
    return False


def weights(target: str) -> dict[tuple[str, int], bytes]:
    dataset = Dataset.open(target)
    blocks = [block for layer in dataset.layers.values() for block in layer.blocks]
    return {
        (block.header.layer_name, block.header.row_start): dataset.read_block(block).codes.tobytes()
        for block in blocks
    }


def paths(target: str) -> set[str]:
    """But the parts', whose names are their attempts'."""
    return {info.path for info in open_store(target).list() if not info.path.startswith("weights/")}


# What is there before a change is what is there after the one before it.
@pytest.mark.parametrize(
    "landed", [pytest.param(False, marks=pytest.mark.slow), True], ids=["before", "after"]
)
def test_the_same_command_completes_what_died_at_any_write(
    source: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, landed: bool
) -> None:
    quantize(source, str(tmp_path / "quiet"), CONFIG, RUN)
    quiet, expected = weights(str(tmp_path / "quiet")), paths(str(tmp_path / "quiet"))
    at = 0
    while True:
        here = f"{target}/{at}"
        death = Death(at, landed=landed)
        if not dies(source, here, death, monkeypatch):
            break
        last = death.changes[-1]
        assert ("manifest.json" in paths(here)) <= ("manifest.json" in last or "delete" in last), last
        quantize(source, here, CONFIG, RUN)
        assert weights(here) == quiet, last
        assert paths(here) == expected, last
        assert verify(here).problems == (), last
        at += 1
    assert (
        at >= 12
    )  # plan, 3 commits at least, index, sidecar, 4 of the report, manifest, and the temporary deletes


def test_an_overwrite_that_died_at_any_change_can_be_repeated(
    source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    overwriting = RUN.replace(overwrite=True)
    quantize(source, f"{target}/before", QuantizationConfig("int4"), RUN)
    at = 0
    while True:
        here = f"{target}/{at}"
        copy_target(f"{target}/before", here)
        if not dies(source, here, Death(at, landed=True), monkeypatch, overwriting):
            break
        quantize(source, here, CONFIG, overwriting)
        assert verify(here).problems == ()
        assert len(open_store(here).list("weights")) == len(open_store(here).list("run/commits"))
        at += 1
    assert at >= 12


def test_a_sidecar_that_changed_between_two_runs_is_refused_before_any_work(
    source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run died between its sidecar and its manifest; the second would have to replace it."""
    create = store_type(target).create

    def dying(store: Store, path: str, data: bytes) -> bool:
        if path == "report/report.json":
            raise Killed
        return create(store, path, data)

    with monkeypatch.context() as patch:
        patch.setattr(store_type(target), "create", dying)
        with pytest.raises(Killed):
            quantize(source, target, CONFIG, RUN)
    (Path(source) / "config.json").write_text('{"a": 2}')
    with pytest.raises(TargetConflict, match=r"config\.json: this file differs from the source's"):
        quantize(source, target, CONFIG, RUN)
    quantize(source, target, CONFIG, RUN.replace(overwrite=True))
    assert verify(target).problems == ()
    assert open_store(target).read("config.json") == b'{"a": 2}'
