"""The interface of a storage: objects under a root URI, read by byte ranges and written whole. Nothing here says how.

`open.open_store` chooses the implementation. Errors of the underlying libraries are translated once, in local.py and
remote/: a missing object is NotFound, anything else StorageError.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO, ClassVar, Self, cast

import numpy as np

from arrowquant_dist.errors import StorageError
from arrowquant_dist.storage.traffic import Traffic

_READER_BUFFER_NBYTES = 1 << 20
TEMPORARY_MARK = ".tmp-"  # in the name of every object that gets its final name later


def is_temporary(path: str) -> bool:
    """Whether the path is that of an unfinished object, which was to get its final name when its writer ended."""
    name = path.rpartition("/")[2]
    return name.startswith(".") and TEMPORARY_MARK in name


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes [start, stop) of an object."""

    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object. path: relative to the store's root. version: changes whenever the object does (ETag …)."""

    path: str
    nbytes: int
    version: str


@dataclass(frozen=True, slots=True)
class BegunUpload:
    """An object that is being written in pieces and does not exist yet. key: its full name at the storage. upload:
    the upload's id."""

    key: str
    upload: str


class ObjectWriter(ABC):
    """A new object, written from front to back. It exists at the latest after `close`.

    Leaving a `with` block by an exception, or dropping the writer unclosed, aborts: nothing stays behind. was_beaten:
    set by `close` for a writer from `Store.open_new`: whether another object was there first, and this one was
    dropped.
    """

    def __init__(self) -> None:
        self.closed = False
        self.was_beaten = False
        self._position = 0

    def write(self, data: bytes | memoryview) -> int:
        """Writes all of `data` (any buffer); returns its size in bytes. Raises StorageError, as for a full disk."""
        nbytes = memoryview(data).nbytes
        if nbytes:
            self._write(memoryview(data).cast("B"))
        self._position += nbytes
        return nbytes

    def room(self, nbytes: int) -> np.ndarray | None:  # noqa: ARG002 - what writers without any are asked for
        """Memory in which to make the next bytes, uint8 [nbytes], so that `write` need not copy them if it is given
        exactly this array; valid until the next call. None if the writer has no such memory."""
        return None

    def tell(self) -> int:
        return self._position

    def flush(self) -> None:
        """Does nothing, since nothing is buffered here. Libraries call it."""
        return

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._close()

    def abort(self) -> None:
        """Drops the object. After `close`, or a second time, it does nothing."""
        if not self.closed:
            self.closed = True
            self._abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if error_type is None:
            self.close()
        else:
            self.abort()

    def __del__(self) -> None:
        if not getattr(self, "closed", True):
            self.abort()

    @abstractmethod
    def _write(self, data: memoryview) -> None: ...

    @abstractmethod
    def _close(self) -> None: ...

    @abstractmethod
    def _abort(self) -> None: ...


class Store(ABC):
    """A storage with a root URI. Paths are POSIX and relative to it; "" is the object at the root itself.
    Thread-safe, picklable.

    uri: the root, safe to show: no credentials, no query. traffic: bytes of weights and parts that `read_into` has
    read and writers have written since this store was opened.
    """

    is_near: ClassVar[bool] = False  # reads take no round trip: many small ones are as fast as one large one
    repeats_reads: ClassVar[bool] = (
        True  # failed requests have been repeated already; another repetition is useless
    )
    uri: str
    traffic: Traffic

    def url(self, path: str) -> str:
        """Full URI of an object, safe to show."""
        return f"{self.uri.rstrip('/')}/{path}" if path else self.uri

    def settle(self, objects: Iterable[ObjectInfo]) -> None:  # noqa: B027 - nothing to do where versions count writes
        """Returns once any later change to one of these objects is certain to give it another version."""

    def release(self) -> None:  # noqa: B027 - nothing to do for most
        """Closes open files, each as soon as no read uses it. They are opened again when needed."""

    @abstractmethod
    def pin(self, info: ObjectInfo) -> None:
        """Requires the object to stay exactly this one: else `check`, `confirm` or a read raises SourceChanged."""

    @abstractmethod
    def check(self, path: str) -> None:
        """Raises SourceChanged if the object is not the pinned one, NotFound if it is gone. Makes no request if reads
        tell the version anyway."""

    @abstractmethod
    def confirm(self) -> None:
        """Raises SourceChanged unless every pinned object that was read since the last call is, and was all the time,
        the pinned one. Raises NotFound."""

    def exists(self, path: str) -> bool:
        """Whether an object (not a directory) is at `path`."""
        raise NotImplementedError

    def size(self, path: str) -> int:
        """Size of an object in bytes. Raises NotFound."""
        return self.info(path).nbytes

    def has_file(self, path: str) -> bool:
        """As `exists`, for files whose absence decides what a place is taken for: raises NoRegularFile if a folder
        has the name. Object stores have no folders."""
        return self.exists(path)

    @abstractmethod
    def info(self, path: str) -> ObjectInfo:
        """Size and version of an object. Raises NotFound."""

    @abstractmethod
    def read(self, path: str) -> bytes:
        """The content of a small object. Raises NotFound."""

    @abstractmethod
    def read_into(self, path: str, start: int, out: np.ndarray) -> None:
        """Fills `out` (C-contiguous) with the bytes from `start`. Raises StorageError if the object ends early."""

    def read_pieces_into(
        self, path: str, start: int, out: np.ndarray, piece_nbytes: int, seen: Callable[[memoryview], None]
    ) -> None:
        """As `read_into`, in pieces of `piece_nbytes`: `seen` is called with each piece, in order, as soon as it has
        been read."""
        for at in range(0, out.size, piece_nbytes):
            piece = out[at : at + piece_nbytes]
            self.read_into(path, start + at, piece)
            seen(piece.data)

    def read_chunks_into(self, path: str, start: int, out: np.ndarray, digests: bytes, nbytes: int) -> int:  # noqa: ARG002
        """As `read_into`, as long as each chunk of `nbytes` bytes matches its xxh3_128 digest (16 bytes, big-endian).
        Returns how many bytes of `out` were filled and verified. If that is not all, something is wrong with the next
        chunk, or this store does not support verified reads: use read_pieces_into to find out."""
        return 0

    def read_all_into(self, path: str, reads: Sequence[tuple[int, np.ndarray]]) -> None:
        """Does `read_into` for each (start, out), concurrently over a network. An error's byte range spans them all."""
        for start, out in reads:
            self.read_into(path, start, out)

    def announce(self, path: str, start: int, nbytes: int) -> None:  # noqa: B027 - a hint, nothing to do for most
        """Hints that this range is read next."""

    def read_range(self, path: str, byte_range: ByteRange) -> np.ndarray:
        """The bytes of a range in a new, writable array: uint8 [byte_range.nbytes]. Raises StorageError if the object
        ends before."""
        out = np.empty(byte_range.nbytes, np.uint8)
        self.read_into(path, byte_range.start, out)
        return out

    def read_versioned(self, path: str) -> tuple[bytes, str]:
        """The content of a small object, and the version that has this content. Raises NotFound.

        It queries the version before and after reading, so it is meant for rare use.
        """
        while True:
            before = self.info(path)
            data = self.read(path)
            if self.info(path) == before:
                return data, before.version

    def open_reader(self, path: str) -> BinaryIO:
        """A seekable reader over `read_into`, for libraries that expect a file. Raises NotFound."""
        raw = _RangeReader(self, path, self.size(path))
        return cast(BinaryIO, io.BufferedReader(raw, _READER_BUFFER_NBYTES))

    @abstractmethod
    def open_writer(self, path: str) -> ObjectWriter:
        """A writer for a new object at `path`, which replaces an existing one. Creates parent directories."""

    @abstractmethod
    def open_new(self, path: str) -> ObjectWriter:
        """A writer for a new object at `path`, if there is none: nobody sees it before `close`, which puts it in
        place in one step, or drops it if another object is there by then, whoever's it is (`was_beaten`). Creates
        parent directories.

        Checking and placing are one step on local disk with hard links and on S3 (`If-None-Match`). Elsewhere, and
        with S3 servers that ignore the condition or check it too early, another object that is created in between is
        replaced: so use it for objects of which every writer writes the same bytes.
        """

    @abstractmethod
    def write(self, path: str, data: bytes) -> None:
        """Replaces the object at `path`: readers see either the old or the new content."""

    @abstractmethod
    def create(self, path: str, data: bytes) -> bool:
        """Creates the object, atomically with its content, if there is none. False if there is one already.

        Where responses can get lost (on any network), it returns True as well if exactly the same bytes are there:
        they are taken for our own. So objects that must be told apart have to differ, as commits do by their
        attempt's id.
        """

    def begun_uploads(self, prefix: str = "") -> Sequence[BegunUpload]:  # noqa: ARG002 - most storages have none
        """Uploads to the directory `prefix` and below that were begun and not completed: nobody sees them, but they
        take space."""
        return []

    def abandon(self, uploads: Iterable[BegunUpload]) -> None:  # noqa: B027 - most storages have none
        """Aborts these uploads. A writer that is still at work on one fails."""

    def abandon_uploads(self, prefix: str = "") -> None:
        """Aborts all current `begun_uploads`, which writers that died have left."""
        self.abandon(self.begun_uploads(prefix))

    @abstractmethod
    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """All objects in the directory `prefix` and below, sorted by path; [] if there are none."""

    @abstractmethod
    def delete(self, paths: Iterable[str]) -> None:
        """Deletes objects, in the given order if they are deleted one by one; missing ones are ignored.

        It deletes whatever is there, whoever made it: use it for names that nobody else can have, and
        `delete_unchanged` for others.
        """

    @abstractmethod
    def delete_unchanged(self, versions: Mapping[str, str]) -> Sequence[str]:
        """Deletes the objects that still have the version that `list` or `info` reported; missing ones are ignored.

        versions: {path: version}. Returns the paths at which another object is by now; those stay. Checking and
        deleting are one step on local disk, in memory:// and on S3 (`If-Match`), where equal content has equal
        versions. Elsewhere, and with S3 servers that ignore the condition, another object that is created in between
        is lost.
        """

    def check_path(self, path: str) -> str:
        """`path` if it stays under the root, else StorageError: paths may come from headers written by strangers."""
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts or "\0" in path:
            raise StorageError(f"the path {path!r} leads out of the folder; refused", uri=self.uri)
        return path


class _RangeReader(io.RawIOBase):
    def __init__(self, store: Store, path: str, nbytes: int) -> None:
        self._store, self._path, self._nbytes, self._position = store, path, nbytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._nbytes}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        nbytes = max(0, min(len(buffer), self._nbytes - self._position))
        if nbytes:
            self._store.read_into(self._path, self._position, np.frombuffer(buffer, np.uint8, nbytes))
        self._position += nbytes
        return nbytes
