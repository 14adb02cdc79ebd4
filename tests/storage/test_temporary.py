"""Temporary files are removed afterwards, and an error of the system names the file that it is about."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from arrowquant_dist.config import DEFAULT_STORAGE
from arrowquant_dist.errors import StorageError
from arrowquant_dist.models.pair import opened_model
from arrowquant_dist.storage.temporary import reserve, temporary_folder, written_here
from tests.conftest import CHECKOUT


def test_a_folder_is_gone_afterwards_with_all_that_is_in_it() -> None:
    with temporary_folder() as folder, written_here(folder / "a" / "b"):
        (folder / "a" / "b").write_bytes(b"1")
    assert not folder.exists()


def test_where_no_folder_can_be_made_the_error_says_how_to_name_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(StorageError, match="TMPDIR") as caught, temporary_folder():
        pass
    assert str(tmp_path / "gone") in str(caught.value)


def test_an_error_within_that_is_not_the_system_s_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), written_here(tmp_path / "a"):
        raise ValueError("mine")


def test_a_disk_without_room_is_named_with_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Copies of MiniLM's small files: a failed write says no name by itself."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with (
        pytest.raises(StorageError, match="disk is full") as caught,
        opened_model("minilm", DEFAULT_STORAGE, 1 << 30),
    ):
        pass
    assert str(caught.value.uri).startswith(f"{tmp_path}/arrowquant-")
    assert not [*tmp_path.iterdir()]


def test_reserved_room_is_there(tmp_path: Path) -> None:
    reserve(tmp_path / "new" / "values", 3 << 20)
    found = (tmp_path / "new" / "values").stat()
    assert found.st_size == 3 << 20
    assert found.st_blocks * 512 >= 3 << 20


def test_room_that_is_not_there_is_an_error_and_no_signal(tmp_path: Path) -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "from pathlib import Path\n"
        "from arrowquant_dist.storage.temporary import reserve\n"
        f"reserve(Path({str(tmp_path / 'values')!r}), 2 << 20)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=CHECKOUT, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("arrowquant_dist.errors.StorageError: ")
    assert str(tmp_path / "values") in done.stderr.splitlines()[-1]
