"""The places at which every storage test runs. Their set-up and their checks bypass the code under test."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import fsspec

from arrowquant_dist.config import Storage
from tests.servers.azurite import Azurite
from tests.servers.gcs import Gcs
from tests.servers.objects import Objects


class Place(Protocol):
    """A fresh, empty root. storage: the settings that reach it. put, get, paths: access by other means than the
    store's."""

    uri: str

    @property
    def storage(self) -> Storage: ...

    def put(self, path: str, data: bytes) -> None: ...
    def get(self, path: str) -> bytes: ...
    def paths(self) -> list[str]: ...


@dataclass
class LocalPlace:
    uri: str
    root: Path
    storage: Storage = field(default_factory=Storage)

    def put(self, path: str, data: bytes) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_bytes(data)

    def get(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def paths(self) -> list[str]:
        return sorted(f.relative_to(self.root).as_posix() for f in self.root.rglob("*") if f.is_file())


@dataclass
class MemoryPlace:
    uri: str
    root: str
    storage: Storage = field(default_factory=Storage)

    def put(self, path: str, data: bytes) -> None:
        fsspec.filesystem("memory").pipe_file(f"{self.root}/{path}", data)

    def get(self, path: str) -> bytes:
        return bytes(fsspec.filesystem("memory").cat_file(f"{self.root}/{path}"))

    def paths(self) -> list[str]:
        found = fsspec.filesystem("memory").find(self.root)
        return sorted(name.removeprefix(self.root + "/") for name in found)


@dataclass
class S3Place:
    """A folder in a bucket of a real server."""

    uri: str
    storage: Storage
    objects: Objects

    def put(self, path: str, data: bytes) -> None:
        self.objects.put(f"{self.uri}/{path}", data)

    def get(self, path: str) -> bytes:
        return self.objects.get(f"{self.uri}/{path}")

    def paths(self) -> list[str]:
        assert self.objects.uploads(self.uri) == []  # an unfinished upload takes space like a file
        return sorted(self.objects.sizes(self.uri))


@dataclass
class EmulatedPlace:
    """A folder in an emulator's bucket. storage: the settings that reach it through fsspec."""

    uri: str
    server: Gcs | Azurite

    @property
    def storage(self) -> Storage:
        return Storage(self.server.storage_options)

    def put(self, path: str, data: bytes) -> None:
        self.server.put(self._name(path), data)

    def get(self, path: str) -> bytes:
        return self.server.get(self._name(path))

    def paths(self) -> list[str]:
        root = self._name("")
        return [name.removeprefix(root) for name in self.server.names(root)]

    def _name(self, path: str) -> str:
        return f"{self.uri.removeprefix(self.server.uri + '/')}/{path}"
