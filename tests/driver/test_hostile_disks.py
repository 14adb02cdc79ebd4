"""Disks that are full, read-only or without hard links: the work is done, or one error says why not and nothing is
published. The same command completes it once the reason is gone."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from arrowquant_dist import QuantizationConfig, RunConfig
from arrowquant_dist.driver import quantize
from arrowquant_dist.errors import ArrowQuantError
from arrowquant_dist.verify import verify
from tests.datasets import weights_of
from tests.sources import random_weights, save_checkpoint

CONFIG = QuantizationConfig()
RUN = RunConfig(workers=1, shard_bytes=64 << 10, engine="inline")
OVERWRITE, REPAIR = RUN.replace(overwrite=True), RUN.replace(repair=True)
GROWING = ["open", "write", "pwrite", "fsync", "link", "mkdir"]
CHANGING = [*GROWING, "unlink", "replace", "rmdir"]
NO_LINKS = [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK]
Weights = dict[tuple[str, int], tuple[bytes, bytes, bytes]]


class Disk:
    """Refuses what changes it from the n-th such system call below `folder` on."""

    def __init__(self, folder: Path, code: int, refused: list[str], at: int) -> None:
        self._folder, self._code, self._at = folder, code, at
        self._refused = refused
        self.calls = 0

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in self._refused:
            monkeypatch.setattr(os, name, self._refusing(name, getattr(os, name)))

    def _refusing(self, name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        def refusing(*given: Any, **named: Any) -> Any:
            if self._is_change(name, given):
                self.calls += 1
                if self.calls > self._at:
                    raise OSError(self._code, os.strerror(self._code))
            return own(*given, **named)

        return refusing

    def _is_change(self, name: str, given: tuple[Any, ...]) -> bool:
        if name == "open" and not given[1] & os.O_CREAT:
            return False
        path = Path(f"/proc/self/fd/{given[0]}").readlink() if isinstance(given[0], int) else Path(given[0])
        return path.is_relative_to(self._folder)


@pytest.fixture
def source(tmp_path: Path) -> str:
    source = save_checkpoint(tmp_path / "source", random_weights(2, 32, 512, torch.float32))
    (Path(source) / "config.json").write_text('{"a": 1}')
    return source


@pytest.fixture
def quiet(source: str, tmp_path: Path) -> Weights:
    quantize(source, str(tmp_path / "quiet"), CONFIG, RUN)
    return weights_of(tmp_path / "quiet")


def assert_sound(target: Path, quiet: Weights) -> None:
    assert verify(str(target)).problems == ()
    assert weights_of(target) == quiet


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
@pytest.mark.parametrize(
    ("code", "every", "refused", "said"),
    [
        (errno.ENOSPC, 11, GROWING, "the disk is full; free some space and run the same command again"),
        (errno.EROFS, 13, CHANGING, "the file system is read-only"),
        pytest.param(errno.EDQUOT, 3, GROWING, "the disk quota is full; free some", marks=pytest.mark.slow),
    ],
)
def test_a_disk_that_refuses_at_some_call_is_one_error_and_the_same_command_completes_the_run(
    source: str,
    quiet: Weights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    every: int,
    refused: list[str],
    said: str,
    *,
    links: bool,
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", refusing_links(errno.EPERM))
    at = failed = 0
    is_reached = True
    while is_reached:
        target = tmp_path / f"{at}"
        disk = Disk(target, code, refused, at)
        with monkeypatch.context() as patch:
            disk.patch(patch)
            error = failure(source, target)
        if error is not None:
            assert said in str(error)
            assert error.exit_code == 1
            assert not (target / "manifest.json").exists(), at
            failed += 1
        quantize(source, str(target), CONFIG, RUN)
        assert_sound(target, quiet)
        is_reached = disk.calls > at
        at += every
    assert failed * every > 40


def failure(source: str, target: Path) -> ArrowQuantError | None:
    try:
        quantize(source, str(target), CONFIG, RUN)
    except ArrowQuantError as error:
        return error
    return None


def refusing_links(code: int) -> Callable[..., None]:
    def link(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return link


@pytest.mark.parametrize("code", NO_LINKS)
def test_without_hard_links_runs_overwrites_and_repairs_are_done(
    source: str, quiet: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    target = tmp_path / "out"
    monkeypatch.setattr(os, "link", refusing_links(code))
    quantize(source, str(target), QuantizationConfig("int4"), RUN)
    quantize(source, str(target), CONFIG, OVERWRITE)
    assert_sound(target, quiet)
    part = next(target.rglob("part-*.parquet"))
    part.write_bytes(bytes(part.stat().st_size))
    quantize(source, str(target), CONFIG, REPAIR)
    assert_sound(target, quiet)
    assert quantize(source, str(target), CONFIG, RUN).already_finished
    assert not list(target.rglob(".*"))


def test_a_finished_dataset_on_a_read_only_disk_is_finished_sound_and_not_overwritten(
    source: str, quiet: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    quantize(source, str(target), CONFIG, RUN)
    with monkeypatch.context() as patch:
        Disk(target, errno.EROFS, CHANGING, 0).patch(patch)
        assert quantize(source, str(target), CONFIG, RUN).already_finished
        assert quantize(source, str(target), CONFIG, REPAIR).damaged == ()
        with pytest.raises(ArrowQuantError, match="the file system is read-only"):
            quantize(source, str(target), CONFIG, OVERWRITE)
        assert_sound(target, quiet)
    quantize(source, str(target), CONFIG, OVERWRITE)
    assert_sound(target, quiet)
