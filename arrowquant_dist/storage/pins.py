"""Objects that are to stay what they were when a run was planned, and what tells that they are not any more."""

from __future__ import annotations

import os
from collections.abc import Iterable

from arrowquant_dist.errors import SourceChanged, counted
from arrowquant_dist.storage.base import ObjectInfo

_OF_A_FILE = ("mtime", "size", "ctime", "inode")  # what a local file's version is made of, in its order
_COARSE_SECONDS = 2.0  # between two times of FAT, and more than of others that keep whole seconds
_TICK_SECONDS = (
    0.02  # between two times of a file system whose kernel counts 100 ticks a second, and some more
)


def file_version(stat: os.stat_result) -> str:
    """Every write gives a file another ctime, which no program can set back; a file that is put in its place has
    another inode. So not even one of the same size and mtime has the same version."""
    return f"{stat.st_mtime_ns}-{stat.st_size}-{stat.st_ctime_ns}-{stat.st_ino}"


def is_version_of(version: str, stat: os.stat_result) -> bool:
    """Whether it was of this file with this content, its ctime aside: a link that comes or goes changes that, and a
    file gets its name by one and loses the name that it was written under."""
    mtime, size, _, inode = range(len(_OF_A_FILE))
    was, is_now = version.split("-"), file_version(stat).split("-")
    return len(was) == len(is_now) and all(was[part] == is_now[part] for part in (mtime, size, inode))


def what_differs(before: tuple[int, str], now: tuple[int, str]) -> list[str]:
    """Of two (nbytes, version) of one object, in words; [] where nothing that both tell does.

    Plans of older releases have local files' mtime and size alone.
    """
    parts = before[1].split("-"), now[1].split("-")
    if all(len(of) in (2, len(_OF_A_FILE)) and all(part.isdigit() for part in of) for of in parts):
        return [name for name, was, is_now in zip(_OF_A_FILE, *parts, strict=False) if was != is_now]
    size = ["size"] if before[0] != now[0] else []
    return [*size, "ETag or version"] if before[1] != now[1] else size


def seconds_until_settled(changed: float, now: float) -> float:
    """How long it takes until a write would give the file another ctime than `changed`, both in seconds since 1970.

    A clock that file systems take their times from stands still between two ticks: what is written in the tick of the
    write before it cannot be told from that. A ctime of the future is another machine's clock, of which this one knows
    nothing but that it ticks.
    """
    tick = _COARSE_SECONDS if changed.is_integer() else _TICK_SECONDS
    return min(max(changed + tick - now, 0.0), tick)


class Pins:
    """The pinned objects of one store. Thread-safe: each method is one step of a dict or a set.

    Left unnoticed: what a program writes through a shared mapping of the file that it had dirtied before, which the
    kernel dates when it gets to it.
    """

    def __init__(self) -> None:
        self._pinned: dict[str, ObjectInfo] = {}
        self._read: set[str] = set()

    def add(self, info: ObjectInfo) -> None:
        self._pinned[info.path] = info

    def __contains__(self, path: str) -> bool:
        return path in self._pinned

    def read(self, path: str) -> None:
        """Says that it was read, and nothing proves of which version."""
        if path in self._pinned:
            self._read.add(path)

    def take_read(self) -> Iterable[str]:
        """The paths that `read` was told of since the last call."""
        read, self._read = self._read, set()
        return read

    def check(self, found: ObjectInfo, url: str) -> None:
        """SourceChanged where it is pinned as another one."""
        pinned = self._pinned.get(found.path)
        if pinned is None or (pinned.nbytes, pinned.version) == (found.nbytes, found.version):
            return
        items = what_differs((pinned.nbytes, pinned.version), (found.nbytes, found.version))
        message = (
            f"the file changed since the plan was made ({', '.join(items)}: {counted(pinned.nbytes, 'byte')}, version "
            f"{pinned.version}, then, {counted(found.nbytes, 'byte')}, {found.version} now)"
        )
        raise SourceChanged(f"{message}; put it back, or start anew with --overwrite", uri=url)

    def check_version(self, path: str, version: str, url: str) -> None:
        """The same of a pinned object of which only the version is known."""
        self.check(ObjectInfo(path, self._pinned[path].nbytes, version), url)
