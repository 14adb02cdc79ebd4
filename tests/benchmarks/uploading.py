"""Uploads a folder's files as objects, for a benchmark to read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arrowquant_dist.config import Storage
from arrowquant_dist.storage.open import open_store

_PIECE_NBYTES = 64 << 20


def upload(folder: Path, uri: str, options: Mapping[str, Any]) -> None:
    store = open_store(uri, Storage(options))
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file, store.open_writer(path.relative_to(folder).as_posix()) as writer:
                while piece := file.read(_PIECE_NBYTES):
                    writer.write(piece)
