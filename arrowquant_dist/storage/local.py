"""Objects on local disk, without fsspec: pread into the caller's memory, rename and link for atomicity."""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np

from arrowquant_dist.errors import NoRegularFile, NotFound
from arrowquant_dist.storage.base import ObjectInfo, ObjectWriter, Store
from arrowquant_dist.storage.disk import CachedFile, Disk
from arrowquant_dist.storage.durable import Folders
from arrowquant_dist.storage.local_writers import (
    LocalWriter,
    NewLocalWriter,
    link_name,
    temporary_beside,
    unnamed,
)
from arrowquant_dist.storage.locks import locked_file
from arrowquant_dist.storage.pins import Pins, file_version, is_version_of, seconds_until_settled
from arrowquant_dist.storage.regular import (
    NoRegularFileError,
    obstacle,
    open_regular,
    refuse_other_than_regular,
)
from arrowquant_dist.storage.system_errors import short_read, storage_error
from arrowquant_dist.storage.traffic import Traffic

_CACHED_FILES = 64
_PUBLISH_ATTEMPTS = 3
# Smaller reads are perhaps used while they are still in the CPU's cache.
_LEAST_PAST_CACHE_NBYTES = 4 << 20


class LocalStore(Store):
    """A directory, or a single file, on this machine. direct_writes: see config.Storage."""

    is_near: ClassVar[bool] = True
    repeats_reads: ClassVar[bool] = False

    def __init__(self, uri: str, direct_writes: str = "auto") -> None:
        path = uri.split("://", 1)[1] if "://" in uri else uri
        self._root = _absolute(path)
        self.uri = str(self._root)
        self.traffic = Traffic()
        self._lock = threading.Lock()
        self._files: OrderedDict[str, _File] = OrderedDict()
        self._pins = Pins()
        self._folders = Folders(self._root)
        self._disk = Disk(direct_writes)
        self._own = threading.local()  # each thread's

    def __reduce__(self) -> tuple[Any, ...]:
        return LocalStore, (self.uri, self._disk.direct_writes)

    def settle(self, objects: Iterable[ObjectInfo]) -> None:
        """Waits one tick of the file system's clock if one of them was written just now."""
        changes = [0.0]
        for info in objects:
            with suppress(OSError):  # gone meanwhile: reading it will raise
                changes.append(self._local(info.path).stat().st_ctime_ns / 1e9)
        time.sleep(seconds_until_settled(max(changes), time.time()))

    def release(self) -> None:
        with self._lock:
            self._files.clear()

    def pin(self, info: ObjectInfo) -> None:
        self._pins.add(info)

    def check(self, path: str) -> None:
        with self._translated(path):
            self._open_cached(path)

    def confirm(self) -> None:
        """Opens each file again to check: a network file system may answer what a name stands for from its cache, but
        asks its server when a file is opened. A file that was replaced has another inode, one that was written to
        another ctime."""
        for path in self._pins.take_read():
            with self._translated(path):
                now = _File(self._local(path))
                self._pins.check(self._info(path, os.fstat(now.descriptor)), self.url(path))

    def exists(self, path: str) -> bool:
        with self._translated(path):
            if self._local(path).is_file():
                return True
        self._refuse_obstacle(path)
        return False

    def has_file(self, path: str) -> bool:
        with self._translated(path):
            if self._local(path).is_dir():
                raise _no_regular_file(self._local(path), "a folder, not a file")
        return self.exists(path)

    def info(self, path: str) -> ObjectInfo:
        with self._translated(path):
            stat = self._local(path).stat()
            refuse_other_than_regular(stat, path)
            return self._info(path, stat)

    def read(self, path: str) -> bytes:
        """Reads up to the size that the file had when opened or pinned, so that reading a growing file ends."""
        self._pins.read(path)
        with self._translated(path), open(open_regular(self._local(path)), "rb") as file:  # noqa: PTH123 - a descriptor
            stat = os.fstat(file.fileno())
            if path in self._pins:
                self._pins.check(self._info(path, stat), self.url(path))
            return file.read(stat.st_size)

    def read_into(self, path: str, start: int, out: np.ndarray) -> None:
        self.read_pieces_into(path, start, out, max(out.size, 1), _ignore)

    def read_pieces_into(
        self, path: str, start: int, out: np.ndarray, piece_nbytes: int, seen: Callable[[memoryview], None]
    ) -> None:
        if out.size == 0:
            return
        view = out.data.cast("B")
        nbytes = len(view)
        # Not inside _translated: this runs for each MiB while other threads wait for the GIL, so its overhead matters.
        try:
            file = self._open_cached(path)
            for first in range(0, nbytes, piece_nbytes):
                done, last = first, min(first + piece_nbytes, nbytes)
                while done < last:
                    count = os.preadv(file.descriptor, [view[done:last]], start + done)
                    if count == 0:
                        raise short_read(self.url(path), start, nbytes, done)
                    done += count
                seen(view[first:last])
        except OSError as error:
            self._raise_translated(error, path, (start, start + nbytes))
        self.traffic.add(read_nbytes=nbytes)

    def read_chunks_into(self, path: str, start: int, out: np.ndarray, digests: bytes, nbytes: int) -> int:
        if out.size < _LEAST_PAST_CACHE_NBYTES or "llvmlite.binding" not in sys.modules:
            return 0
        from arrowquant_dist.kernels.chunks import ChunkMemory, read_chunks

        with self._translated(path, (start, start + out.size)):
            file = self._open_cached(path)
        memory = getattr(self._own, "memory", None)
        if memory is None or memory.chunk_nbytes != nbytes:
            memory = self._own.memory = ChunkMemory(nbytes)
        done = read_chunks(file.descriptor, start, digests, out, memory)
        self.traffic.add(read_nbytes=done)
        return done

    def announce(self, path: str, start: int, nbytes: int) -> None:
        if hasattr(os, "posix_fadvise"):
            with self._translated(path, (start, start + nbytes)):
                os.posix_fadvise(self._open_cached(path).descriptor, start, nbytes, os.POSIX_FADV_WILLNEED)

    def open_writer(self, path: str) -> ObjectWriter:
        self._forget(path)
        with self._translated(path):
            target = self._local(path)
            file = self._disk.make(target, self._open_new(target, os.O_TRUNC))
            return LocalWriter(target, file, self.url(path), self.traffic, self._folders.sync)

    def open_new(self, path: str) -> ObjectWriter:
        self._forget(path)
        with self._translated(path):
            target = self._local(path)
            temporary = temporary_beside(target)
            file = self._disk.make(temporary, self._open_new(temporary, os.O_EXCL))
            return NewLocalWriter(target, temporary, file, self.url(path), self.traffic, self._folders.sync)

    def write(self, path: str, data: bytes) -> None:
        self._forget(path)
        self._publish(path, data, os.replace)

    def create(self, path: str, data: bytes) -> bool:
        if self.exists(path):
            return False
        try:
            self._publish(path, data, link_name)
        except FileExistsError:
            return False
        return True

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        with self._translated(prefix):
            start = self._local(prefix)
            if start.is_file():
                return [self.info(prefix)]
            found = []
            for folder, _, names in os.walk(start):
                for name in names:
                    file = Path(folder, name)
                    with suppress(FileNotFoundError):  # removed since, or a dangling link
                        found.append(self._info(file.relative_to(self._root).as_posix(), file.stat()))
            return sorted(found, key=lambda info: info.path)

    def delete(self, paths: Iterable[str]) -> None:
        folders = set()
        for path in paths:
            self._forget(path)
            with self._translated(path):
                self._local(path).unlink(missing_ok=True)
                folders.add(self._local(path).parent)
                self._remove_empty_parents(path)
        with self._translated(""):
            self._folders.sync_removed(folders)

    def delete_unchanged(self, versions: Mapping[str, str]) -> Sequence[str]:
        changed, folders = [], set()
        for path, version in versions.items():
            self._forget(path)
            with self._translated(path), suppress(FileNotFoundError):
                with locked_file(self._local(path)) as stat:
                    if not is_version_of(version, stat):
                        changed.append(path)
                        continue
                    self._local(path).unlink()
                folders.add(self._local(path).parent)
                self._remove_empty_parents(path)
        with self._translated(""):
            self._folders.sync_removed(folders)
        return changed

    def _local(self, path: str) -> Path:
        return self._root / self.check_path(path) if path else self._root

    @staticmethod
    def _info(path: str, stat: os.stat_result) -> ObjectInfo:
        return ObjectInfo(path, stat.st_size, file_version(stat))

    def _publish(self, path: str, data: bytes, place: Callable[[Path, Path], None]) -> None:
        """Writes `data` under a temporary name beside its final path, then moves it there in one step."""
        with self._translated(path):
            target = self._local(path)
            for attempt in range(_PUBLISH_ATTEMPTS):
                temporary = temporary_beside(target)
                descriptor = self._open_new(temporary, os.O_EXCL)
                try:
                    with LocalWriter(
                        temporary, CachedFile(descriptor), self.url(path), self.traffic, unnamed
                    ) as writer:
                        writer.write(data)
                    place(temporary, target)
                    self._folders.sync(target.parent)
                except FileNotFoundError:  # another process swept the temporary file away
                    if attempt + 1 == _PUBLISH_ATTEMPTS:
                        raise
                else:
                    return
                finally:
                    temporary.unlink(missing_ok=True)

    def _open_new(self, target: Path, flags: int) -> int:
        while True:  # `delete` elsewhere may remove the empty folder between mkdir and open
            try:
                return os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, 0o666)
            except FileNotFoundError:
                self._folders.make(target.parent)

    def _open_cached(self, path: str) -> _File:
        """The open file of `path`. It stays open while the caller holds it, even if the cache drops it."""
        with self._lock:
            file = self._files.get(path)
            if file is None:
                file = _File(self._local(path))
                if path in self._pins:
                    self._pins.check(self._info(path, os.fstat(file.descriptor)), self.url(path))
                self._files[path] = file
                if len(self._files) > _CACHED_FILES:
                    self._files.popitem(last=False)
            self._files.move_to_end(path)
            self._pins.read(path)
            return file

    def _forget(self, path: str) -> None:
        with self._lock:
            self._files.pop(path, None)

    def _remove_empty_parents(self, path: str) -> None:
        for parent in self._local(path).parents:
            if parent == self._root or not parent.is_relative_to(self._root):
                return
            try:
                parent.rmdir()
            except OSError:  # not empty, or gone already
                return

    def _refuse_obstacle(self, path: str, cause: OSError | None = None) -> None:
        """Raises NoRegularFile if something else is in the place of the file, or of a folder above it. A folder in
        the file's place counts as a missing file, as on object stores. Nothing is raised for a folder that may not be
        entered, since nobody can see what is in it."""
        if isinstance(cause, PermissionError):
            return
        place = self._local(path)
        if path and not place.is_dir() and (found := obstacle(self._root, path)) is not None:
            raise _no_regular_file(*found) from cause

    @contextmanager
    def _translated(self, path: str, byte_range: tuple[int, int] | None = None) -> Iterator[None]:
        try:
            yield
        except FileExistsError:
            raise
        except OSError as error:
            self._raise_translated(error, path, byte_range)

    def _raise_translated(self, error: OSError, path: str, byte_range: tuple[int, int] | None) -> NoReturn:
        self._refuse_obstacle(path, error)
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise NotFound("there is no such file; check the path", uri=self.url(path)) from error
        if isinstance(error, IsADirectoryError):
            message = "this is a folder, not a file; check the path"
            raise NotFound(message, uri=self.url(path)) from error
        if isinstance(error, NoRegularFileError):
            message = "this is not a regular file but a FIFO, socket or device; put the file itself here"
            raise NoRegularFile(message, uri=self.url(path)) from error
        if error.errno == errno.ELOOP:
            message = f"the link {error.filename} leads to itself; remove it, or put the file itself here"
            raise NotFound(message, uri=self.url(path)) from error
        raise storage_error(error, self.url(path), byte_range) from error


def _absolute(path: str) -> Path:
    """The absolute path. Raises NotFound for a relative path if the working directory was deleted."""
    try:
        return Path(os.path.expanduser(path)).absolute()  # noqa: PTH111 - pathlib raises for an unknown user
    except FileNotFoundError as error:
        message = "the working directory was deleted; change to another one, or use an absolute path"
        raise NotFound(message, uri=path) from error


def _ignore(_: memoryview) -> None:
    pass


class _File:
    """An open descriptor, closed when the last holder of this object releases it."""

    def __init__(self, path: Path) -> None:
        self.descriptor = open_regular(path)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # `os` may be gone when Python exits
        if hasattr(self, "descriptor"):
            close(self.descriptor)


def _no_regular_file(place: Path, what: str) -> NoRegularFile:
    message = f"this is {what}; put the real one here, or remove it"
    return NoRegularFile(message, uri=str(place))
