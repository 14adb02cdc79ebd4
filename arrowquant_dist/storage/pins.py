"""Pins: objects that have to stay what they were when a run was planned, and how a change is detected."""

from __future__ import annotations

import os
from collections.abc import Iterable

from arrowquant_dist.errors import SourceChanged, counted
from arrowquant_dist.storage.base import ObjectInfo

_OF_A_FILE = ("mtime", "size", "ctime", "inode")  # the items of a local file's version, in order
_COARSE_SECONDS = 2.0  # resolution of FAT's times; covers other file systems that keep whole seconds
_TICK_SECONDS = 0.02  # resolution of file times with a kernel of 100 ticks per second, and a margin


def file_version(stat: os.stat_result) -> str:
    """The version of a local file. Every write gives a file another ctime, which no program can set back, and a file
    that replaces it has another inode. So even a file of the same size and mtime has another version."""
    return f"{stat.st_mtime_ns}-{stat.st_size}-{stat.st_ctime_ns}-{stat.st_ino}"


def is_version_of(version: str, stat: os.stat_result) -> bool:
    """Whether the version belongs to this file with this content, ignoring its ctime: adding or removing a hard link
    changes the ctime, and a file gets its name by a link and loses the name that it was written under."""
    mtime, size, _, inode = range(len(_OF_A_FILE))
    was, is_now = version.split("-"), file_version(stat).split("-")
    return len(was) == len(is_now) and all(was[part] == is_now[part] for part in (mtime, size, inode))


def what_differs(before: tuple[int, str], now: tuple[int, str]) -> list[str]:
    """The items in which two (nbytes, version) pairs of an object differ, in words, if both record them.

    Plans of older releases record only mtime and size of local files.
    """
    parts = before[1].split("-"), now[1].split("-")
    if all(len(of) in (2, len(_OF_A_FILE)) and all(part.isdigit() for part in of) for of in parts):
        return [name for name, was, is_now in zip(_OF_A_FILE, *parts, strict=False) if was != is_now]
    size = ["size"] if before[0] != now[0] else []
    return [*size, "ETag or version"] if before[1] != now[1] else size


def seconds_until_settled(changed: float, now: float) -> float:
    """Seconds until a write is certain to change the ctime `changed`. changed, now: in seconds since 1970.

    The clock from which file systems take their times stands still between two ticks, so a write in the same tick as
    the previous one cannot be told from it. A ctime in the future is of another machine's clock, of which is known
    only that it ticks.
    """
    tick = _COARSE_SECONDS if changed.is_integer() else _TICK_SECONDS
    return min(max(changed + tick - now, 0.0), tick)


class Pins:
    """The pinned objects of one store. Thread-safe: each method is a single operation on a dict or a set.

    Not detected: writes through a shared mapping of the file whose pages were dirty before; the kernel dates them
    only when it writes them back.
    """

    def __init__(self) -> None:
        self._pinned: dict[str, ObjectInfo] = {}
        self._read: set[str] = set()

    def add(self, info: ObjectInfo) -> None:
        self._pinned[info.path] = info

    def __contains__(self, path: str) -> bool:
        return path in self._pinned

    def read(self, path: str) -> None:
        """Records that the object was read in a way that does not prove its version."""
        if path in self._pinned:
            self._read.add(path)

    def take_read(self) -> Iterable[str]:
        """The paths that `read` has recorded since the last call."""
        read, self._read = self._read, set()
        return read

    def check(self, found: ObjectInfo, url: str) -> None:
        """Raises SourceChanged if the object is pinned and `found` is another version."""
        pinned = self._pinned.get(found.path)
        if pinned is None or (pinned.nbytes, pinned.version) == (found.nbytes, found.version):
            return
        items = what_differs((pinned.nbytes, pinned.version), (found.nbytes, found.version))
        message = (
            f"the file has changed since the plan was made ({', '.join(items)}: {counted(pinned.nbytes, 'byte')} of "
            f"version {pinned.version} then, {counted(found.nbytes, 'byte')} of version {found.version} now)"
        )
        raise SourceChanged(f"{message}; restore it, or start over with --overwrite", uri=url)

    def check_version(self, path: str, version: str, url: str) -> None:
        """The same for a pinned object of which only the version is known."""
        self.check(ObjectInfo(path, self._pinned[path].nbytes, version), url)
