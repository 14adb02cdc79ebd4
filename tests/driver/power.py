"""What a power cut leaves of a folder: what fsync was called for, and nothing reliable of the rest."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

Names = dict[str, int]  # {name in a folder: inode}


class Disk:
    """Tracks which files and folders below `root` are on disk. It holds descriptors so that inodes are not reused."""

    def __init__(self, root: Path, before_sync: Callable[[], None] = lambda: None) -> None:
        self.root = root
        self.content: dict[int, bytes] = {}
        self.names: dict[int, Names] = {}
        self.syncs = 0
        self._before_sync = before_sync
        self._held: list[int] = []

    @contextmanager
    def watching(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", self._fsync)
            yield
        for descriptor in self._held:
            os.close(descriptor)

    def leave(self, folder: Path, *, with_all_names: bool) -> None:
        """Creates in `folder` what a power cut at this moment would leave of `root`.

        with_all_names: changes of names reached the disk, as may happen without an fsync, but bytes that were not
        synced did not, and are zeros.
        """
        parent = self.root.parent.stat().st_ino
        if with_all_names or self.root.name in self.names.get(parent, {}):
            self._leave(self.root, self.root.stat().st_ino, folder, with_all_names=with_all_names)

    def _leave(self, path: Path, inode: int, to: Path, *, with_all_names: bool) -> None:
        to.mkdir(parents=True)
        found = {entry.name: entry.inode() for entry in os.scandir(path)} if path.exists() else {}
        names = found if with_all_names else self.names.get(inode, {})
        for name, of in names.items():
            is_there = found.get(name) == of
            if of in self.names or (is_there and (path / name).is_dir()):
                self._leave(path / name, of, to / name, with_all_names=with_all_names)
            else:
                nbytes = (path / name).stat().st_size if is_there else 0
                (to / name).write_bytes(self.content.get(of, bytes(nbytes)))

    def _fsync(self, descriptor: int) -> None:
        self._before_sync()
        self.syncs += 1
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            self.names[status.st_ino] = {entry.name: entry.inode() for entry in os.scandir(descriptor)}
        else:
            read = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY)
            self.content[status.st_ino] = os.pread(read, status.st_size, 0)
            self._held.append(read)
