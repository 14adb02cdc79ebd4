"""A client for any fsspec file system, by the methods that all of them have."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any

from arrowquant_dist.config import Transfer
from arrowquant_dist.errors import StorageError, counted
from arrowquant_dist.storage.base import ObjectInfo
from arrowquant_dist.storage.remote.client import (
    Client,
    NewObject,
    ShortAnswer,
    cut_object,
    no_conditional_create,
)
from arrowquant_dist.storage.remote.faults import status_of
from arrowquant_dist.storage.remote.fsspec_private import coroutine_of
from arrowquant_dist.storage.remote.requests import Requests
from arrowquant_dist.storage.traffic import Traffic

COPIES_OF_A_RANGE = 2  # the pieces of a response as they arrive, and the joined range
COPIES_OF_A_PART = 2  # a file's buffer, and a copy of it for its request

_NOWHERE = logging.NullHandler()  # one for all clients, since a logger adds the same handler only once
_MEMORY_LOCK = threading.Lock()  # memory:// checks and writes in two steps
# How "only if nothing is there" is passed to _pipe_file. Other file systems ignore it and would overwrite silently.
_CREATING: dict[str, dict[str, Any]] = {
    "gs": {"mode": "create"},
    "gcs": {"mode": "create"},
    "az": {"overwrite": False},
    "abfs": {"overwrite": False},
    "abfss": {"overwrite": False},
}
# Options to read just the range. hf:// reads 5 MiB ahead otherwise.
_READING: dict[str, dict[str, Any]] = {"hf": {"cache_type": "none"}}
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


class FileSystemClient(Client):
    """A client for one file system. fs: asynchronous ones run on their loop, with our time-outs; others in threads,
    with their own."""

    def __init__(self, fs: Any, root: str, transfer: Transfer, traffic: Traffic) -> None:
        from fsspec.asyn import get_loop

        super().__init__(transfer, traffic)
        self._fs, self._root = fs, root.rstrip("/")
        # What the library logs about failed requests, even tracebacks, goes to the user's logs, not to the terminal.
        logging.getLogger(type(fs).__module__.partition(".")[0]).addHandler(_NOWHERE)
        self.loop = fs.loop if fs.async_impl else get_loop()
        self._threads = ThreadPoolExecutor(transfer.requests, "fsspec")  # no thread until one is needed
        self._protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
        self._reading = next((_READING[name] for name in self._protocols if name in _READING), {})

    async def info(self, path: str) -> ObjectInfo:
        self._fs.invalidate_cache()
        found = await self._call("info", 0, self._full(path))
        if found["type"] == "directory":
            raise FileNotFoundError(path)
        return _info(path, found)

    async def read(self, path: str) -> bytes:
        return bytes(await self._call("cat_file", 0, self._full(path)))

    async def read_into(self, path: str, start: int, view: memoryview) -> None:
        stop = start + len(view)
        options = {"start": start, "end": stop, **self._reading}
        data = await self._call("cat_file", len(view), self._full(path), **options)
        self.traffic.add(read_nbytes=len(data))
        if len(data) > len(view):
            raise StorageError("the storage does not serve byte ranges; copy the object to one that does")
        if len(data) < len(view):
            nbytes = (await self.info(path)).nbytes
            if nbytes < stop:
                raise cut_object(stop, nbytes)
            raise ShortAnswer(f"{len(data)} of {counted(len(view), 'byte')} arrived")
        view[:] = data

    async def write(self, path: str, data: bytes) -> None:
        await self._call("pipe_file", len(data), self._full(path), data)

    async def create(self, path: str, data: bytes) -> bool:
        if "memory" in self._protocols:
            return bool(await self._threaded(self._create_in_memory, path, data))
        how = next((_CREATING[name] for name in sorted(self._protocols) if name in _CREATING), None)
        if how is None:
            raise no_conditional_create(path)
        try:
            await self._call("pipe_file", len(data), self._full(path), data, **how)
        except Exception as error:
            is_taken = isinstance(error, FileExistsError) or type(error).__name__ == "ResourceExistsError"
            if not is_taken and status_of(error) != 412:
                raise
            return await self.read(path) == data  # our own, whose response was lost
        return True

    async def list_page(self, prefix: str, after: str | None) -> tuple[list[ObjectInfo], str | None]:
        del after  # fsspec returns everything at once
        self._fs.invalidate_cache()
        try:
            found = await self._call("find", 0, self._full(prefix), detail=True)
        except FileNotFoundError:
            return [], None
        if not isinstance(found, Mapping):  # if the root is an object, adlfs returns its name without details
            found = {name: await self._call("info", 0, name) for name in found}
        files = (item for item in found.items() if item[1]["type"] == "file")
        return [_info(name.removeprefix(self._root).lstrip("/"), info) for name, info in files], None

    async def delete(self, paths: Sequence[str]) -> None:
        for path in paths:
            with suppress(FileNotFoundError):
                await self._call("rm_file", 0, self._full(path))

    async def delete_unchanged(self, versions: Mapping[str, str]) -> list[str]:
        """fsspec has no conditional delete: except in memory://, an object that is created after the check is lost."""
        if "memory" in self._protocols:
            return list(await self._threaded(self._delete_unchanged_in_memory, versions))
        changed = []
        for path, version in versions.items():
            with suppress(FileNotFoundError):
                if (await self.info(path)).version != version:
                    changed.append(path)
                else:
                    await self.delete([path])
        return changed

    def new_object(self, path: str, requests: Requests) -> NewObject:
        part_nbytes = self.transfer.upload_bytes
        file = self._fs.open(self._full(path), "wb", block_size=part_nbytes)

        def delete() -> None:
            requests.run(self.delete([path]))

        return FileSink(file, part_nbytes, self.traffic, delete)

    def only_object(self, path: str, requests: Requests) -> NewObject:
        if "memory" in self._protocols:
            return OnlyMemorySink(lambda data: self._create_in_memory(path, data), self.traffic)
        part_nbytes = self.transfer.upload_bytes
        file = self._fs.open(self._full(path), "wb", block_size=part_nbytes)

        def is_there() -> bool:
            return bool(requests.run(self._call("exists", 0, self._full(path))))

        return OnlyFileSink(file, part_nbytes, self.traffic, is_there)

    def _create_in_memory(self, path: str, data: bytes) -> bool:
        with _MEMORY_LOCK:
            if self._fs.exists(self._full(path)):
                return False
            self._fs.pipe_file(self._full(path), data)
            return True

    def _delete_unchanged_in_memory(self, versions: Mapping[str, str]) -> list[str]:
        changed = []
        with _MEMORY_LOCK:
            for path, version in versions.items():
                with suppress(FileNotFoundError):
                    if _info(path, self._fs.info(self._full(path))).version != version:
                        changed.append(path)
                    else:
                        self._fs.rm_file(self._full(path))
        return changed

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    async def _call(self, method: str, nbytes: int, *arguments: Any, **options: Any) -> Any:
        """Calls a method of the file system. nbytes: size of the body that is sent or read."""
        in_thread = partial(self._threaded, getattr(self._fs, method))
        if not self._fs.async_impl:
            return await in_thread(*arguments, **options)
        async with self.seconds(nbytes):
            return await (coroutine_of(self._fs, method) or in_thread)(*arguments, **options)

    async def _threaded(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, partial(function, *arguments, **options))


class FileSink:
    """A file of fsspec's. Its uploads block the caller, and are repeated as its library does.

    part_nbytes: the file sends its buffer once it has this size, after a write. So it is given no more at a time: if
    a value were written whole, it would buffer all of it.
    """

    def __init__(self, file: Any, part_nbytes: int, traffic: Traffic, delete: Callable[[], None]) -> None:
        self._file, self._part_nbytes = file, part_nbytes
        self._traffic, self._delete = traffic, delete

    def write(self, data: memoryview) -> None:
        for start in range(0, len(data), self._part_nbytes):
            self._file.write(data[start : start + self._part_nbytes])
        self._traffic.add(written_nbytes=len(data))

    def close(self) -> None:
        self._file.close()

    def abort(self) -> None:
        """Aborts the uploads in flight; if the file system can't, deletes what it wrote."""
        try:
            if hasattr(self._file, "discard"):
                self._file.discard()
            else:
                self._file.close()
        finally:
            with suppress(AttributeError):
                self._file.closed = True  # or its finalizer would publish what was discarded
            self._delete()


class OnlyFileSink(FileSink):
    """A file that is dropped if something is at its path when it is closed, since fsspec's files know no condition.
    An existing object is never deleted."""

    def __init__(self, file: Any, part_nbytes: int, traffic: Traffic, is_there: Callable[[], bool]) -> None:
        super().__init__(file, part_nbytes, traffic, lambda: None)
        self._is_there = is_there

    def close(self) -> None:
        if self._is_there():
            self.abort()
            raise FileExistsError(self._file.path)
        super().close()


class OnlyMemorySink:
    """The same for memory://, where an opened file exists at once."""

    def __init__(self, create: Callable[[bytes], bool], traffic: Traffic) -> None:
        self._data, self._create, self._traffic = bytearray(), create, traffic

    def write(self, data: memoryview) -> None:
        self._data += data
        self._traffic.add(written_nbytes=len(data))

    def close(self) -> None:
        data = bytes(self._data)
        self.abort()
        if not self._create(data):
            raise FileExistsError

    def abort(self) -> None:
        self._data = bytearray()


def _info(path: str, found: Mapping[str, Any]) -> ObjectInfo:
    version = next((found[key] for key in _VERSION_KEYS if found.get(key)), "unknown")
    if isinstance(version, datetime):  # from memory://'s `info`; its `find` gives a number
        version = version.timestamp()
    nbytes = int(found["size"] or 0)
    return ObjectInfo(path, nbytes, f"{str(version).strip(chr(34))}-{nbytes}")
