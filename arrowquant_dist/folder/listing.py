"""Lists a source's folder, wherever it is: only what may be read, and only as deep as needed.

Hidden files and folders (`.cache`, `._model.safetensors`, `__MACOSX`) are skipped. On a local disk only regular files
are read: a FIFO or a device would never end. A link may not leave the folder, or a stranger's model could publish
whatever its reader can read; the only exception are the blobs of the Hugging Face cache that the folder belongs to. A
problem with an entry becomes an error only when the entry is used: a home directory has sockets.
"""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from arrowquant_dist.config.sizes import rounded_size
from arrowquant_dist.errors import InvalidCheckpoint, NotFound, StorageError
from arrowquant_dist.storage.base import ObjectInfo, Store
from arrowquant_dist.storage.uris import is_local
from arrowquant_dist.strict_json import parse_json

MAX_JSON_NBYTES = 32 << 20
_DEEPEST = 4  # levels of folders below a named one
_MOST_FILES = 10_000  # in a named folder and those below it
_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclass(slots=True)
class _Entries:
    """The content of one folder. files: sorted by path; unreadable ones are included, with 0 bytes. folders: names."""

    files: list[ObjectInfo] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)


class SourceFolder(ABC):
    """A folder of a source. Paths are relative to it; "" is the folder itself. Hidden entries are not listed."""

    def __init__(self, store: Store) -> None:
        self.store = store

    @abstractmethod
    def entries(self, path: str = "") -> _Entries:
        """What is directly in the folder `path`; nothing if it is missing. Raises InvalidCheckpoint for a link out."""

    @abstractmethod
    def check(self, path: str) -> None:
        """Raises InvalidCheckpoint, with the reason, if the entry at `path` must not be read. It may be missing."""

    def is_readable(self, path: str) -> bool:  # noqa: ARG002 - objects always are
        """Whether a listed file is a regular one, or a link to one."""
        return True

    @abstractmethod
    def peek(self, path: str, most: int) -> list[str]:
        """Names of up to `most` files directly in the folder `path`; none if it is a link or can't be read."""

    def files(self, path: str = "") -> list[ObjectInfo]:
        return self.entries(path).files

    def folders(self, path: str = "") -> list[str]:
        """Paths of the folders directly in `path`."""
        return [_join(path, name) for name in self.entries(path).folders]

    def find(self, path: str) -> ObjectInfo | None:
        """The file at `path`, after checking that it may be read; None if there is none."""
        parent = path.rpartition("/")[0]
        found = next((info for info in self.files(parent) if info.path == path), None)
        if found is not None:
            self.check(path)
        return found

    def tree(self, path: str) -> list[ObjectInfo]:
        """The files of a folder and of those below it, limited in depth and number."""
        found: list[ObjectInfo] = []
        for files in self._walk(path, _DEEPEST):
            found += files
            if len(found) > _MOST_FILES:
                break
        return found[:_MOST_FILES]

    def read_json(self, path: str) -> Any:
        """The value in a JSON file; None if there is no file. Raises InvalidCheckpoint for invalid JSON."""
        info = self.find(path)
        if info is None:
            return None
        uri = self.store.url(path)
        if info.nbytes > MAX_JSON_NBYTES:
            raise InvalidCheckpoint(
                f"larger than {rounded_size(MAX_JSON_NBYTES)}; this is not a model's file", uri=uri
            )
        try:
            return parse_json(self.store.read(path))
        except ValueError as error:
            message = f"not readable JSON ({error}), but it has to say what the model is; download it again"
            raise InvalidCheckpoint(message, uri=uri) from error

    def _walk(self, path: str, depth: int) -> Iterator[list[ObjectInfo]]:
        entries = self.entries(path)
        yield entries.files
        if depth:
            for name in entries.folders:
                yield from self._walk(_join(path, name), depth - 1)


def open_folder(store: Store) -> SourceFolder:
    """The folder at the root of `store`. Raises NotFound if there is nothing, InvalidCheckpoint if it is no folder."""
    return _LocalFolder(store) if is_local(store.uri) else _ListedFolder(store)


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


class _ListedFolder(SourceFolder):
    """A folder on an object store, read by one listing."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        listing = store.list()
        if not listing:
            raise NotFound("nothing is there; check the spelling and the credentials", uri=store.uri)
        self._folders: defaultdict[str, _Entries] = defaultdict(_Entries)
        for info in listing:
            *parents, name = info.path.split("/")
            if name and not any(is_hidden(part) for part in (*parents, name)):
                self._folders["/".join(parents)].files.append(info)
        for path in list(self._folders):
            while path:
                path, _, name = path.rpartition("/")  # noqa: PLW2901 - up to the root
                if name not in self._folders[path].folders:
                    self._folders[path].folders.append(name)

    def entries(self, path: str = "") -> _Entries:
        return self._folders.get(path, _Entries())

    def check(self, path: str) -> None:
        """Accepts everything: objects are never links or devices."""

    def peek(self, path: str, most: int) -> list[str]:
        return [info.path.rpartition("/")[2] for info in self.files(path)[:most]]


class _LocalFolder(SourceFolder):
    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._root = Path(store.uri)
        if not self._root.is_dir():
            kind = _problem(self._root) if os.path.lexists(self._root) else None
            if kind is not None:
                raise InvalidCheckpoint(f"it is {kind}; use a folder or a regular file", uri=store.uri)
            raise NotFound("no such file or folder; check the spelling", uri=store.uri)
        self._places = _places(self._root)
        self._entries: dict[str, _Entries] = {}
        self._unreadable: set[str] = set()

    def entries(self, path: str = "") -> _Entries:
        found = self._entries.get(path)
        if found is None:
            self.check(path)
            try:
                found = self._scan(path)
            except (FileNotFoundError, NotADirectoryError):
                found = _Entries()
            except OSError as error:
                message = f"the folder can't be read ({error.strerror})"
                raise StorageError(message, uri=self.store.url(path)) from error
            self._entries[path] = found
        return found

    def _scan(self, path: str) -> _Entries:
        found = _Entries()
        with os.scandir(self._root / path) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if is_hidden(entry.name):
                    continue
                inside = _join(path, entry.name)
                if _is_folder(entry):
                    found.folders.append(entry.name)
                elif _problem(self._root / inside) is None:
                    found.files.append(self.store.info(inside))
                else:
                    found.files.append(ObjectInfo(inside, 0, ""))
                    self._unreadable.add(inside)
        return found

    def check(self, path: str) -> None:
        place = self._root / path
        if not os.path.lexists(place):
            return
        real = Path(os.path.realpath(place))
        if not any(real == inside or inside in real.parents for inside in self._places):
            message = (
                f"it is a link out of the source's folder, to {real}, and only what lies within is read; "
                "put what it points to in its place, or remove the link"
            )
            raise InvalidCheckpoint(message, uri=self.store.url(path))
        problem = None if place.is_dir() else _problem(place)
        if problem is not None:
            message = (
                f"it is {problem}, but only regular files are read; put the file itself here, or remove it"
            )
            raise InvalidCheckpoint(message, uri=self.store.url(path))

    def is_readable(self, path: str) -> bool:
        return path not in self._unreadable

    def peek(self, path: str, most: int) -> list[str]:
        try:
            if (self._root / path).is_symlink():
                return []
            with os.scandir(self._root / path) as entries:
                return [entry.name for entry in islice(entries, most) if not is_hidden(entry.name)]
        except OSError:
            return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _places(root: Path) -> tuple[Path, ...]:
    """Where links of a folder may lead: into the folder itself, and from a snapshot of the Hugging Face cache
    (`models--org--name/snapshots/revision/…`) into the blobs of the same repository."""
    real = Path(os.path.realpath(root))
    snapshots = next((parent for parent in real.parents if parent.name == "snapshots"), None)
    if snapshots is None:
        return (real,)
    return real, Path(os.path.realpath(snapshots.with_name("blobs")))


def _problem(place: Path) -> str | None:
    """What is wrong with the entry as a file, in words; None for a regular file."""
    try:
        mode = place.stat().st_mode
    except OSError as error:
        if place.is_symlink():
            return f"a link that leads nowhere ({place.readlink()})"
        return f"not readable ({error.strerror})"
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "not a regular file")


def _join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name
