"""What the README shows does what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pytest

from tests.conftest import CHECKOUT
from tests.integration.layers import read_layers

README = (CHECKOUT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(int8: Path, tmp_path: Path) -> Path:
    """A working directory with the README's out/minilm-int8."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "minilm-int8").symlink_to(int8)
    return tmp_path


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_the_python_of_the_readme_runs(folder: Path, number: int) -> None:
    command = [sys.executable, "-W", "error::UserWarning", "-c", blocks("python")[number]]
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_sql_of_the_readme_gives_the_weights(
    folder: Path, int8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (sql,) = blocks("sql")
    with duckdb.connect() as connection:
        for statement in duckdb.extract_statements(sql):
            found = connection.execute(statement)
        ((values,),) = found.fetchall()
    np.testing.assert_allclose(values, read_layers(int8)["pooler.dense.weight"].values[7], rtol=1e-6)
