from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.ray.runs import Run, start_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return start_run(tmp_path)
