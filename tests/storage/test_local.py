"""What the system does not let the process see is an error in one sentence, and not treated as missing."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arrowquant_dist import WeightLoader, load_tokenizer
from arrowquant_dist.dataset.dataset import Dataset
from arrowquant_dist.errors import NotFound, StorageError
from arrowquant_dist.export import ExportOptions, export_dataset
from arrowquant_dist.report.render import load_report
from arrowquant_dist.storage.local import LocalStore
from arrowquant_dist.verify import verify


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that may not be entered, by whoever runs the tests."""
    folder = tmp_path / "closed"
    folder.mkdir()

    def denying(own: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *how: Any, **more: Any) -> Any:
            if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(f"{folder}/"):
                raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
            return own(path, *how, **more)

        return call

    for name in ("stat", "open"):
        monkeypatch.setattr(os, name, denying(getattr(os, name)))
    return folder


@pytest.mark.parametrize("ask", [LocalStore.exists, LocalStore.has_file, LocalStore.info])
def test_a_file_in_a_folder_that_may_not_be_entered_is_not_taken_for_absent(
    closed: Path, ask: Callable[[LocalStore, str], object]
) -> None:
    with pytest.raises(
        StorageError, match=r"manifest\.json: permission denied; check the owner and the mode"
    ):
        ask(LocalStore(str(closed)), "manifest.json")


@pytest.mark.parametrize(
    "use",
    [
        WeightLoader,
        load_tokenizer,
        Dataset.open,
        verify,
        load_report,
        lambda folder: export_dataset(folder, f"{folder}-out", ExportOptions()),
    ],
    ids=["loader", "tokenizer", "dataset", "verify", "report", "export"],
)
def test_each_use_of_such_a_dataset_ends_with_one_error(closed: Path, use: Callable[[str], object]) -> None:
    with pytest.raises(StorageError, match="denied"):
        use(str(closed))


def test_a_relative_path_in_a_deleted_working_directory_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(NotFound, match="the working directory was deleted") as error:
        LocalStore("out/model")
    assert error.value.uri == "out/model"
    assert LocalStore(str(tmp_path)).uri == str(tmp_path)
