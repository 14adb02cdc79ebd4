"""Copies folders to and from a server, object by object, with the given functions to put and to get."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path


def upload(folder: Path, put: Callable[[str, bytes], None], root: str) -> None:
    """Copies every file below `folder` to the same path below `root`."""
    for file in sorted(f for f in folder.rglob("*") if f.is_file()):
        put(f"{root}/{file.relative_to(folder).as_posix()}", file.read_bytes())


def download(paths: Iterable[str], get: Callable[[str], bytes], root: str, folder: Path) -> Path:
    """Copies each of `paths` below `root` to the same path below `folder`, and returns `folder`."""
    for path in paths:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(get(f"{root}/{path}"))
    return folder
