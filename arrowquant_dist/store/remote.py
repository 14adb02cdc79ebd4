"""Objects behind fsspec: object stores, `memory://`, `hf://`, http. Only opening one imports fsspec."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

import numpy as np

from arrowquant_dist.config import DEFAULT_STORAGE, Storage
from arrowquant_dist.errors import ArrowQuantError, InvalidConfig, MissingDependency, NotFound, StorageError
from arrowquant_dist.store.files import ObjectInfo, ObjectWriter, Store, redact
from arrowquant_dist.store.local import short_read, storage_error
from arrowquant_dist.store.traffic import Traffic

_MEMORY_LOCK = threading.Lock()  # memory:// checks and writes in two steps
_VERSION_KEYS = (
    "ETag",
    "etag",
    "blob_id",
    "sha",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "created",
)


class RemoteStore(Store):
    """A root URL behind an fsspec file system."""

    def __init__(self, uri: str, storage: Storage = DEFAULT_STORAGE) -> None:
        self._secret_uri, self._storage = uri, storage
        self.traffic = Traffic()
        self.uri = redact(uri).rstrip("/") or redact(uri)
        self._fs, root = _open_fs(uri, dict(storage.options))
        self._root = root.rstrip("/")
        self._is_memory = "memory" in self._fs.protocol

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteStore, (self._secret_uri, self._storage)

    def exists(self, path: str) -> bool:
        try:
            self.info(path)
        except NotFound:
            return False
        return True

    def info(self, path: str) -> ObjectInfo:
        with self._translated(path):
            self._fs.invalidate_cache()
            found = self._fs.info(self._full(path))
            if found["type"] == "directory":
                raise FileNotFoundError(path)
            return _info(path, found)

    def read(self, path: str) -> bytes:
        with self._translated(path):
            return bytes(self._fs.cat_file(self._full(path)))

    def read_into(self, path: str, start: int, out: np.ndarray) -> None:
        if out.size == 0:
            return
        view = out.data.cast("B")
        stop = start + len(view)
        with self._translated(path, (start, stop)):
            data = self._fs.cat_file(self._full(path), start=start, end=stop)
        if len(data) != len(view):
            raise short_read(self.url(path), start, len(view), len(data))
        view[:] = data
        self.traffic.add(read_nbytes=len(view))

    def open_writer(self, path: str) -> ObjectWriter:
        with self._translated(path):
            return _RemoteWriter(self, path, self._fs.open(self._full(path), "wb"))

    def write(self, path: str, data: bytes) -> None:
        with self._translated(path):
            self._fs.pipe_file(self._full(path), data)

    def create(self, path: str, data: bytes) -> bool:
        with self._translated(path):
            try:
                if self._is_memory:
                    self._create_in_memory(path, data)
                else:
                    self._fs.pipe_file(self._full(path), data, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                # What s3fs makes of a refused `If-None-Match: *` is EINVAL.
                if error.errno != errno.EINVAL or not self.exists(path):
                    raise
                return False
        return True

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        with self._translated(prefix):
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(self._full(prefix), detail=True)
            except FileNotFoundError:
                return []
            return sorted(
                (_info(self._relative(name), info) for name, info in found.items() if info["type"] == "file"),
                key=lambda info: info.path,
            )

    def delete(self, paths: Iterable[str]) -> None:
        for path in paths:
            with self._translated(path), suppress(FileNotFoundError):
                self._fs.rm_file(self._full(path))

    def _create_in_memory(self, path: str, data: bytes) -> None:
        with _MEMORY_LOCK:
            if self._fs.exists(self._full(path)):
                raise FileExistsError(path)
            self._fs.pipe_file(self._full(path), data)

    def _full(self, path: str) -> str:
        return f"{self._root}/{self.check_path(path)}" if path else self._root

    def _relative(self, name: str) -> str:
        return name.removeprefix(self._root).lstrip("/")

    @contextmanager
    def _translated(self, path: str, byte_range: tuple[int, int] | None = None) -> Iterator[None]:
        """Every library behind fsspec has errors of its own, often no OSError; all of them end here."""
        try:
            yield
        except ArrowQuantError:
            raise
        except FileNotFoundError as error:
            message = "nothing is there; check the spelling and the credentials"
            raise NotFound(message, uri=self.url(path)) from error
        except OSError as error:
            raise storage_error(error, self.url(path), byte_range) from error
        except Exception as error:
            message = f"the storage failed, run the same command again ({type(error).__name__}: {error})"
            raise StorageError(message, uri=self.url(path), byte_range=byte_range) from error


class _RemoteWriter(ObjectWriter):
    def __init__(self, store: RemoteStore, path: str, file: Any) -> None:
        super().__init__()
        self._store, self._path, self._file = store, path, file

    def _write(self, data: memoryview) -> None:
        with self._store._translated(self._path):
            self._file.write(data)
        self._store.traffic.add(written_nbytes=len(data))

    def _close(self) -> None:
        with self._store._translated(self._path):
            self._file.close()

    def _abort(self) -> None:
        """Uploads in flight are given up; where the file system can't, what it wrote is deleted."""
        with suppress(ArrowQuantError), self._store._translated(self._path):
            if hasattr(self._file, "discard"):
                self._file.discard()
                with suppress(AttributeError):
                    self._file.closed = True  # or its finalizer would publish what was discarded
            else:
                self._file.close()
            self._store.delete([self._path])


def _info(path: str, found: Mapping[str, Any]) -> ObjectInfo:
    version = next((found[key] for key in _VERSION_KEYS if found.get(key)), "unknown")
    if isinstance(version, datetime):  # memory:// says so in `info` and a number in `find`
        version = version.timestamp()
    nbytes = int(found["size"] or 0)
    return ObjectInfo(path, nbytes, f"{str(version).strip(chr(34))}-{nbytes}")


def _open_fs(uri: str, options: dict[str, Any]) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        fs, root = url_to_fs(uri, **options)
    except ImportError as error:
        raise MissingDependency(f"this protocol needs a package: {error}", uri=redact(uri)) from error
    except ValueError as error:
        message = f"not a URI that fsspec understands ({error}); check it"
        raise InvalidConfig(message, uri=redact(uri)) from error
    return fs, str(root)
