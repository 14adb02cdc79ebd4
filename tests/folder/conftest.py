from __future__ import annotations

from pathlib import Path

import pytest

from tests.folder.places import Files, Put, put_in_memory, put_local


@pytest.fixture(params=["local", "memory"])
def put(request: pytest.FixtureRequest, tmp_path: Path) -> Put:
    """Puts files into a new folder and returns its URI."""

    def into_place(files: Files) -> str:
        return put_in_memory(files) if request.param == "memory" else put_local(tmp_path / "model", files)

    return into_place
