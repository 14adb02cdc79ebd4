"""Files in the system's folder for temporary files, which are removed afterwards.

If there is no room for them, the error names the file, since it is in none of the places that the user named.
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
    """A new temporary folder. Raises StorageError if the system has no place for one."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="arrowquant-")
    except OSError as error:
        message = "no folder for temporary files can be used; set TMPDIR to one that has room"
        raise StorageError(f"{message} ({error.strerror or error})", uri=error.filename) from error
    with folder as name:
        yield Path(name)


@contextmanager
def written_here(path: Path) -> Iterator[None]:
    """Creates the folder of `path`; system errors inside the block become StorageErrors that name `path`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise storage_error(error, str(path)) from error


def reserve(path: Path, nbytes: int) -> None:
    """Creates a file of `nbytes` zeros with its space allocated on the disk: writing to a memory-mapped file without
    space would kill the process by a signal."""
    with written_here(path), path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, nbytes)
        else:
            file.truncate(nbytes)
