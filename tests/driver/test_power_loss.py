"""A power cut at any moment costs work and never makes a wrong dataset: an object is on disk before anything names
it."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from arrowquant_dist import QuantizationConfig, RunConfig
from arrowquant_dist.driver import Progress, quantize
from arrowquant_dist.errors import ArrowQuantError
from arrowquant_dist.verify import verify
from tests.datasets import weights_of
from tests.driver.power import Disk
from tests.logged import Logged
from tests.sources import random_weights, save_checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
CONFIG = QuantizationConfig()
RUN = RunConfig(workers=1, shard_bytes=64 << 10, engine="inline")


@pytest.fixture
def source(tmp_path: Path) -> str:
    source = save_checkpoint(tmp_path / "source", random_weights(3, 64, 512, torch.float32))
    (Path(source) / "config.json").write_text('{"a": 1}')
    return source


@pytest.fixture
def quiet(source: str, tmp_path: Path) -> dict[Any, Any]:
    quantize(source, str(tmp_path / "quiet"), CONFIG, RUN)
    return weights_of(tmp_path / "quiet")


@pytest.mark.parametrize(
    ("direct_writes", "every"),
    [("auto", 5), ("never", 7), pytest.param("auto", 1, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("with_all_names", [False, True], ids=["names lost", "content lost"])
def test_the_same_command_completes_what_a_power_cut_left(
    source: str,
    tmp_path: Path,
    quiet: dict[Any, Any],
    monkeypatch: pytest.MonkeyPatch,
    with_all_names: bool,  # noqa: FBT001
    direct_writes: str,
    every: int,
) -> None:
    """A cut just before each fsync: all that the run has done since the one before it may be lost."""
    run = RUN.replace(direct_writes=direct_writes)
    cuts: list[Path] = []

    def cut() -> None:
        cuts.append(tmp_path / "cuts" / str(len(cuts)) / "target")
        disk.leave(cuts[-1], with_all_names=with_all_names)

    (tmp_path / "run").mkdir()
    disk = Disk(tmp_path / "run/target", lambda: cut() if disk.root.exists() else None)
    with disk.watching(monkeypatch):
        quantize(source, str(disk.root), CONFIG, run)
        cut()
    assert len(cuts) > 30
    assert (cuts[-1] / "manifest.json").exists()
    for left in cuts[-1::-every]:
        before = {path.relative_to(left): path.read_bytes() for path in committed_parts(left)}
        quantize(source, str(left), CONFIG, run)
        assert weights_of(left) == quiet
        assert verify(str(left)).problems == ()
        after = {path.relative_to(left): path.read_bytes() for path in committed_parts(left)}
        assert before.items() <= after.items()  # nothing that was committed was lost


def committed_parts(target: Path) -> list[Path]:
    commits = (target / "run/commits").glob("[0-9]*.json")
    return [target / json.loads(commit.read_bytes())["receipt"]["part"] for commit in commits]


class Order:
    """Fails where a name that counts is given before what it names is on the disk."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.synced: dict[int, int] = {}  # {inode: size}
        self.names: dict[Path, set[str]] = {}
        self.named = 0

    def watch_syncs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        own_sync = os.fsync

        def fsync(descriptor: int) -> None:
            own_sync(descriptor)
            path, status = Path(f"/proc/self/fd/{descriptor}").readlink(), os.fstat(descriptor)
            if path.is_dir():
                self.names[path] = {entry.name for entry in path.iterdir()}
            self.synced[status.st_ino] = status.st_size

        monkeypatch.setattr("os.fsync", fsync)

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.watch_syncs(monkeypatch)
        own_link = os.link

        def link(source: Path, target: Path) -> None:
            self.check(source)
            path = target.relative_to(self.target).as_posix()
            if path.startswith("run/commits/"):
                self.check_named(self.target / json.loads(source.read_bytes())["receipt"]["part"])
            if path == "manifest.json":
                for file in (file for file in self.target.rglob("*") if file.is_file()):
                    if ".tmp-" not in file.name:
                        self.check_named(file)
            own_link(source, target)
            self.named += 1

        monkeypatch.setattr("os.link", link)

    def check(self, file: Path) -> None:
        """Its bytes are on the disk."""
        assert self.synced.get(file.stat().st_ino) == file.stat().st_size, file

    def check_named(self, file: Path) -> None:
        """And its name, and those of the folders that it is in."""
        self.check(file)
        for path in (file, *file.parents):
            assert path.name in self.names.get(path.parent, ()), path
            if path == self.target:
                return


def test_all_that_a_commit_or_a_manifest_names_is_on_the_disk_before_it(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = Order(tmp_path / "new/folders/target")
    order.watch(monkeypatch)
    quantize(source, str(order.target), CONFIG, RUN)
    assert order.named >= 7  # the plan, 3 commits, index, sidecar, manifest
    assert verify(str(order.target)).problems == ()
    order.check_named(order.target / "manifest.json")


def test_of_an_overwritten_dataset_the_manifest_is_gone_from_the_disk_before_a_part_is(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    quantize(source, str(target), CONFIG, RUN)
    order, own_unlink, gone = Order(target), Path.unlink, list[Path]()
    order.watch_syncs(monkeypatch)

    def unlink(path: Path, missing_ok: bool = False) -> None:  # noqa: FBT001, FBT002 - pathlib's
        if path.suffix == ".parquet" and not gone:
            assert "manifest.json" not in order.names[target]
            gone.append(path)
        own_unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    quantize(source, str(target), CONFIG, RUN.replace(overwrite=True))
    assert gone


def failing(code: int, monkeypatch: pytest.MonkeyPatch, is_meant: Callable[[Path], bool]) -> None:
    own = os.fsync

    def fsync(descriptor: int) -> None:
        if is_meant(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(code, os.strerror(code))
        own(descriptor)

    monkeypatch.setattr("os.fsync", fsync)


@pytest.mark.parametrize("direct_writes", ["auto", "never"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_part_that_did_not_get_to_the_disk_is_dropped(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, direct_writes: str
) -> None:
    target = tmp_path / "target"
    failing(code, monkeypatch, lambda path: path.name.startswith("part-"))
    with pytest.raises(ArrowQuantError, match=os.strerror(code)):
        quantize(source, str(target), CONFIG, RUN.replace(direct_writes=direct_writes))
    assert not list(target.rglob("*.parquet"))
    assert not list((target / "run/commits").glob("*"))


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF])
def test_a_file_system_without_fsync_is_taken_at_its_word(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    failing(code, monkeypatch, lambda path: path.is_dir() or code != errno.EBADF)
    quantize(source, str(tmp_path / "target"), CONFIG, RUN)
    assert verify(str(tmp_path / "target")).problems == ()


def zeroed(part: Path) -> None:
    part.write_bytes(bytes(part.stat().st_size))


def one_bit_flipped(part: Path) -> None:
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)


@pytest.mark.parametrize("damage", [zeroed, one_bit_flipped])
def test_a_part_of_an_earlier_run_with_other_bytes_is_done_again_and_told_of(
    source: str,
    tmp_path: Path,
    quiet: dict[Any, Any],
    logged: Logged,
    damage: Callable[[Path], None],
) -> None:
    """Of the right size: a disk may have said that it was there, and lost power all the same."""
    target = tmp_path / "target"

    def interrupted(progress: Progress) -> None:
        if len(list((target / "run/commits").glob("*.json"))) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(source, str(target), CONFIG, RUN, interrupted)
    parts = committed_parts(target)
    assert len(parts) == 2
    sound = parts[1].read_bytes()
    damage(parts[0])
    with logged.at_level(logging.WARNING):
        quantize(source, str(target), CONFIG, RUN)
    told = f"quantizing it again, since its bytes are not those that were written: {parts[0]}"
    assert [record.getMessage() for record in logged.records] == [told]
    assert weights_of(target) == quiet
    assert parts[1].read_bytes() == sound
    assert not parts[0].exists()
    assert verify(str(target)).problems == ()
