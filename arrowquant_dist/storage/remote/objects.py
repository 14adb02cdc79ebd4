"""A Store at a root URL behind fsspec, built from single requests."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from posixpath import commonpath, dirname
from typing import Any, TypeVar

import numpy as np
import xxhash

from arrowquant_dist.config import DEFAULT_STORAGE, Storage
from arrowquant_dist.errors import ArrowQuantError, InvalidConfig, NotFound, StorageError
from arrowquant_dist.storage.base import BegunUpload, ObjectInfo, ObjectWriter, Store
from arrowquant_dist.storage.pins import Pins
from arrowquant_dist.storage.remote.client import Client, NewObject, ShortAnswer
from arrowquant_dist.storage.remote.faults import translated
from arrowquant_dist.storage.remote.hedging import Hedges
from arrowquant_dist.storage.remote.open import open_client
from arrowquant_dist.storage.remote.requests import Requests, side_by_side
from arrowquant_dist.storage.remote.secrets import Secrets
from arrowquant_dist.storage.traffic import Traffic
from arrowquant_dist.storage.uris import redact

T = TypeVar("T")


class RemoteStore(Store):
    """A store behind fsspec. If the storage tells versions (S3 does), all ranges read of an object are of one
    version, and a pinned object costs no extra request. If it does not, a pinned object is queried before and
    after."""

    def __init__(self, uri: str, storage: Storage = DEFAULT_STORAGE) -> None:
        if redact(uri) != uri:
            message = (
                "a URI with credentials or a query is refused, since it would be shown; use storage_options"
            )
            raise InvalidConfig(message, uri=redact(uri))
        self._storage = storage
        self.uri = uri.rstrip("/") or uri
        self.traffic = Traffic()
        self._client: Client = open_client(uri, storage, self.traffic)
        self._requests = Requests(self._client.loop, storage.transfer, self.traffic)
        hedges = storage.transfer.hedges if self._client.ends_when_cancelled else 0
        self._hedges = Hedges(hedges, self.traffic, patience=storage.transfer.request_timeout / 4)
        self._versions: dict[str, str] = {}
        self._pins = Pins()

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteStore, (self.uri, self._storage)

    def pin(self, info: ObjectInfo) -> None:
        self._pins.add(info)

    def check(self, path: str) -> None:
        if not self._client.tells_versions:
            self._pins.check(self.info(path), self.url(path))

    def confirm(self) -> None:
        for path in self._pins.take_read():
            self._pins.check(self.info(path), self.url(path))

    def exists(self, path: str) -> bool:
        try:
            self.info(path)
        except NotFound:
            return False
        return True

    def info(self, path: str) -> ObjectInfo:
        with self._translated(path):
            found = self._run(lambda: self._client.info(path))
        self._versions[path] = found.version
        return found

    def read(self, path: str) -> bytes:
        self._pins.read(path)
        with self._translated(path):
            return self._run(lambda: self._client.read(path))

    def read_into(self, path: str, start: int, out: np.ndarray) -> None:
        self.read_all_into(path, [(start, out)])

    def read_all_into(self, path: str, reads: Sequence[tuple[int, np.ndarray]]) -> None:
        views = [(start, out.data.cast("B")) for start, out in reads if out.size]
        if not views:
            return
        if not self._client.tells_versions:
            self._pins.read(path)
        span = min(start for start, _ in views), max(start + len(view) for start, view in views)
        with self._translated(path, span):
            self._requests.run(self._read_pieces(path, views))

    def open_writer(self, path: str) -> ObjectWriter:
        self._versions.pop(path, None)
        with self._translated(path):
            return _RemoteWriter(self, path, self._client.new_object(path, self._requests))

    def open_new(self, path: str) -> ObjectWriter:
        self._versions.pop(path, None)
        with self._translated(path):
            return _OnlyWriter(self, path, self._client.only_object(path, self._requests))

    def write(self, path: str, data: bytes) -> None:
        self._versions.pop(path, None)
        with self._translated(path):
            self._run(lambda: self._client.write(path, data))

    def create(self, path: str, data: bytes) -> bool:
        self._versions.pop(path, None)
        with self._translated(path):
            return self._run(lambda: self._client.create(path, data))

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        found: list[ObjectInfo] = []
        after: str | None = None
        with self._translated(prefix):
            while True:
                page, after = self._run(partial(self._client.list_page, prefix, after))
                found += page
                if after is None:
                    return sorted(found, key=lambda info: info.path)

    def delete(self, paths: Iterable[str]) -> None:
        checked = [self.check_path(path) for path in paths]
        for path in checked:
            self._versions.pop(path, None)
        at_once = self._client.delete_at_once
        batches = [checked[first : first + at_once] for first in range(0, len(checked), at_once)]
        with self._translated(""):
            deleting = (self._requests.persist(partial(self._client.delete, batch)) for batch in batches)
            self._requests.run(side_by_side(deleting))

    def delete_unchanged(self, versions: Mapping[str, str]) -> Sequence[str]:
        """Checks the versions before each request too, for servers that ignore its condition."""
        paths = [self.check_path(path) for path in versions]
        at_once = max(self._client.delete_at_once, 1)
        changed = []
        for first in range(0, len(paths), at_once):
            batch = paths[first : first + at_once]
            found = self._versions_of(batch)
            wanted = {path: found[path] for path in batch if found.get(path) == versions[path]}
            changed += [path for path in batch if path in found and path not in wanted]
            for path in batch:
                self._versions.pop(path, None)
            with self._translated(""):
                refused = self._run(partial(self._client.delete_unchanged, wanted)) if wanted else []
            changed += [path for path in refused if self.exists(path)]
        return changed

    def _versions_of(self, paths: Sequence[str]) -> dict[str, str]:
        """{path: version} of the objects that are there: one is queried, several are found by listing their folder."""
        if len(paths) == 1:
            try:
                return {paths[0]: self.info(paths[0]).version}
            except NotFound:
                return {}
        return {info.path: info.version for info in self.list(commonpath(map(dirname, paths)))}

    def begun_uploads(self, prefix: str = "") -> Sequence[BegunUpload]:
        with self._translated(prefix):
            return self._run(lambda: self._client.begun_uploads(prefix))

    def abandon(self, uploads: Iterable[BegunUpload]) -> None:
        for upload in uploads:
            with self._translated(""):
                self._run(partial(self._client.abandon, upload))

    def _run(self, attempt: Callable[[], Awaitable[T]]) -> T:
        return self._requests.run(self._requests.persist(attempt))

    async def _read_pieces(self, path: str, views: Sequence[tuple[int, memoryview]]) -> None:
        step = self._storage.transfer.range_bytes
        await side_by_side(
            self._requests.persist(partial(self._read_piece, path, start + at, view[at : at + step]))
            for start, view in views
            for at in range(0, len(view), step)
        )

    async def _read_piece(self, path: str, start: int, view: memoryview) -> None:
        version = await self._hedges.read(partial(self._client.read_into, path, start), view)
        if self._storage.transfer.read_twice:
            before = xxhash.xxh3_128_digest(view)
            await self._client.read_into(path, start, view)
            if xxhash.xxh3_128_digest(view) != before:
                raise ShortAnswer("two readings of the same bytes differ")
        if version is not None and path in self._pins:
            self._pins.check_version(path, version, self.url(path))
        elif version is not None and self._versions.setdefault(path, version) != version:
            raise StorageError("the object was replaced while it was read; restore it, or start over")

    @contextmanager
    def _translated(self, path: str, byte_range: tuple[int, int] | None = None) -> Iterator[None]:
        """Translates errors: libraries behind fsspec raise their own, often not OSErrors; all of them end here."""
        if path:
            self.check_path(path)
        try:
            yield
        except Exception as error:
            secrets = Secrets(self._storage.options)
            ours = translated(error, self.url(path), byte_range, secrets)
            if ours is error:
                raise
            raise ours from (None if secrets.are_in(error) else error)


class _RemoteWriter(ObjectWriter):
    def __init__(self, store: RemoteStore, path: str, sink: NewObject) -> None:
        super().__init__()
        self._store, self._path, self._sink = store, path, sink

    def _write(self, data: memoryview) -> None:
        with self._store._translated(self._path):
            self._sink.write(data)

    def _close(self) -> None:
        with self._store._translated(self._path):
            self._sink.close()

    def _abort(self) -> None:
        """Best effort: nobody can see what stays behind, and `abandon_uploads` finds it later."""
        if (
            self._store._requests.is_own_thread
        ):  # the finalizer of a dropped writer runs on the loop's own thread, which must not wait for itself
            threading.Thread(target=self._sink.abort, daemon=True).start()
            return
        with suppress(ArrowQuantError), self._store._translated(self._path):
            self._sink.abort()


class _OnlyWriter(_RemoteWriter):
    def _close(self) -> None:
        with self._store._translated(self._path):
            try:
                self._sink.close()
            except FileExistsError:
                self.was_beaten = True
