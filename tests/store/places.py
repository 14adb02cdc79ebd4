"""The places that every storage test runs at. Their set-up and their checks go past the code under test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import fsspec


class Place(Protocol):
    """A fresh, empty root. put, get, paths: by other means than the store's."""

    uri: str

    def put(self, path: str, data: bytes) -> None: ...
    def get(self, path: str) -> bytes: ...
    def paths(self) -> list[str]: ...


@dataclass
class LocalPlace:
    uri: str
    root: Path

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

    def put(self, path: str, data: bytes) -> None:
        fsspec.filesystem("memory").pipe_file(f"{self.root}/{path}", data)

    def get(self, path: str) -> bytes:
        return bytes(fsspec.filesystem("memory").cat_file(f"{self.root}/{path}"))

    def paths(self) -> list[str]:
        found = fsspec.filesystem("memory").find(self.root)
        return sorted(name.removeprefix(self.root + "/") for name in found)
