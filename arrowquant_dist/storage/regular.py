"""Tells regular files on local disk from anything else in their place, which is neither read nor taken for missing.

A dataset whose manifest.json is a folder, or a link to a disk that is not mounted, still has a manifest; treating it
as one that never had any would mean reading its weights unverified.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from stat import S_IFBLK, S_IFCHR, S_IFIFO, S_IFMT, S_IFSOCK, S_ISDIR, S_ISREG

_KINDS = {S_IFIFO: "a FIFO", S_IFSOCK: "a socket", S_IFCHR: "a device", S_IFBLK: "a device"}


class NoRegularFileError(OSError):
    """A FIFO, socket or device, which may have no end and may never answer."""


def open_regular(path: Path) -> int:
    """A descriptor for reading. Opening a FIFO does not wait for its writer, and the check is made on what was
    opened, so nothing can be swapped in between."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise NoRegularFileError(path) from error
        raise
    try:
        refuse_other_than_regular(os.fstat(descriptor), str(path))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def refuse_other_than_regular(stat: os.stat_result, path: str) -> None:
    if S_ISDIR(stat.st_mode):
        raise IsADirectoryError(path)
    if not S_ISREG(stat.st_mode):
        raise NoRegularFileError(path)


def obstacle(root: Path, path: str) -> tuple[Path, str] | None:
    """What is at `path` under `root`, or in the place of a folder above it, such that no file can be there, with a
    description; None if there is a regular file or nothing."""
    place = root / path
    for found in (place, *place.parents):
        if found == root:
            return None
        if os.path.lexists(found):
            what = _other_than_file(found) if found == place else _other_than_folder(found)
            return None if what is None else (found, what)
    return None


def obstructed(root: Path, is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    """(path under `root`, description) for everything below it that has the name of a wanted file but is not a file.
    Links to folders are not followed."""
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            place = Path(folder, name)
            path = place.relative_to(root).as_posix()
            if is_wanted(path) and (what := _other_than_file(place)) is not None:
                yield path, what


def _other_than_file(place: Path) -> str | None:
    mode = _mode(place)
    if isinstance(mode, str):
        return mode
    if mode is None or S_ISREG(mode):
        return None
    return "a folder, not a file" if S_ISDIR(mode) else f"{_kind(mode)}, not a regular file"


def _other_than_folder(place: Path) -> str | None:
    mode = _mode(place)
    if isinstance(mode, str):
        return mode
    if mode is None or S_ISDIR(mode):
        return None
    return f"{'a file' if S_ISREG(mode) else _kind(mode)}, not a folder"


def _kind(mode: int) -> str:
    return _KINDS.get(S_IFMT(mode), "something else")


def _mode(place: Path) -> int | str | None:
    """The file mode; a description for a dangling link; None if it is gone by now or may not be looked at."""
    try:
        return place.stat().st_mode
    except OSError as error:
        if not place.is_symlink():
            return None
        if error.errno == errno.ELOOP:
            return "a link that leads to itself"
        return f"a link to {place.readlink()}, which does not exist"
