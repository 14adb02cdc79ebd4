"""Files beside the work, in the system's folder for temporary ones, which are gone afterwards.

Where there is no room for them the error says which file that was: it lies in none of the places that the user named.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from arrowquant_dist.errors import StorageError
from arrowquant_dist.storage.system_errors import storage_error


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder of its own. StorageError where the system has no place for one."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="arrowquant-")
    except OSError as error:
        message = "no folder for temporary files can be used; name one that has room by TMPDIR"
        raise StorageError(f"{message} ({error.strerror or error})", uri=error.filename) from error
    with folder as name:
        yield Path(name)


@contextmanager
def written_here(path: Path) -> Iterator[None]:
    """What fails within for the system's reasons raises StorageError that names `path`, whose folder is made first."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise storage_error(error, str(path)) from error


def reserve(path: Path, nbytes: int) -> None:
    """A file of so many zeros that has its room on the disk: what is mapped into memory and finds none when it is
    written to ends the process by a signal."""
    with written_here(path), path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, nbytes)
        else:
            file.truncate(nbytes)
