"""Writers of new files on local disk, which are written from front to back, and may get their names at the end."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from arrowquant_dist.storage.base import TEMPORARY_MARK, ObjectWriter
from arrowquant_dist.storage.disk import NewFile
from arrowquant_dist.storage.durable import sync_file
from arrowquant_dist.storage.system_errors import storage_error
from arrowquant_dist.storage.traffic import Traffic

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class LocalWriter(ObjectWriter):
    """Writes a file at its final path. sync: syncs the names of a folder to the disk."""

    def __init__(
        self, path: Path, file: NewFile, url: str, traffic: Traffic, sync: Callable[[Path], None]
    ) -> None:
        super().__init__()
        self._path, self._file, self._url, self._traffic = path, file, url, traffic
        self._sync = sync

    def room(self, nbytes: int) -> np.ndarray | None:
        try:
            return self._file.room(nbytes)
        except OSError as error:  # from an earlier write
            raise storage_error(error, self._url) from error

    def _write(self, data: memoryview) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise storage_error(error, self._url) from error
        self._traffic.add(written_nbytes=len(data))

    def _close(self) -> None:
        try:
            self._file.close()
            self._sync(self._path.parent)
        except OSError as error:  # of the last pieces; quotas and network file systems may report it only now
            self._remove()
            raise storage_error(error, self._url) from error

    def _abort(self) -> None:
        self._file.abandon()
        self._remove()

    def _remove(self) -> None:
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


class NewLocalWriter(LocalWriter):
    """Writes a file that gets its name when it is complete, if the name is still free then. target: the final path."""

    def __init__(
        self,
        target: Path,
        temporary: Path,
        file: NewFile,
        url: str,
        traffic: Traffic,
        sync: Callable[[Path], None],
    ) -> None:
        super().__init__(temporary, file, url, traffic, sync)
        self._target = target

    def _close(self) -> None:
        try:
            self._file.close()
            self.was_beaten = not _take_name(self._path, self._target)
            self._sync(self._target.parent)
        except OSError as error:
            raise storage_error(error, self._url) from error
        finally:
            self._remove()


def temporary_beside(target: Path) -> Path:
    return target.with_name(f".{target.name}{TEMPORARY_MARK}{uuid.uuid4().hex[:12]}")


def _take_name(temporary: Path, target: Path) -> bool:
    """Gives the file its final name; returns whether that worked. Without hard links, checking is a separate step."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        return temporary.stat().st_nlink > 1  # our own link landed but the response was lost (NFS)
    except FileNotFoundError:
        if not target.exists():  # the temporary file was swept away by somebody who thought its writer dead
            raise
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if target.exists():
            return False
        temporary.replace(target)
    return True


def unnamed(_folder: Path) -> None:
    """A `sync` that does nothing, for a temporary file, whose name need not survive."""


def link_name(temporary: Path, target: Path) -> None:
    """Gives `temporary` its final name; raises FileExistsError if that is taken."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        if temporary.stat().st_nlink < 2:  # 2: our own link landed but the response was lost (NFS)
            raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # No hard links here. Only the atomicity of the content is lost, and readers of such objects validate them.
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            try:
                _write_all(descriptor, temporary.read_bytes())
                sync_file(descriptor)
            finally:
                os.close(descriptor)
        except OSError:  # a full disk, say: the partial file is ours, and must not block the next attempt
            target.unlink(missing_ok=True)
            raise


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
