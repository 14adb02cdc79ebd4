from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from tests.store.places import LocalPlace, MemoryPlace, Place


@pytest.fixture(params=["local", "file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    root = tmp_path / "root"
    if request.param == "local":
        yield LocalPlace(str(root), root)
    elif request.param == "file":
        yield LocalPlace(f"file://{root}", root)
    else:
        name = f"/test-{uuid.uuid4().hex}"
        yield MemoryPlace(f"memory:/{name}", name)
        fs = fsspec.filesystem("memory")
        for path in fs.find(name):
            fs.rm_file(path)
