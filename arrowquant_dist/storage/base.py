"""Objects under a root URI: byte ranges in, whole objects out. What every storage promises, and nothing of how.

`open.open_store` picks the way. Errors of the libraries behind it are translated in local.py and remote/, once: what
isn't there is NotFound, the rest StorageError.
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
TEMPORARY_MARK = ".tmp-"  # in the name of every object that is on its way to another one


def is_temporary(path: str) -> bool:
    """Whether an object was on its way to another one when its writer ended."""
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
    """One object. path: relative to the store's root. version: another one when the object is (ETag …)."""

    path: str
    nbytes: int
    version: str


@dataclass(frozen=True, slots=True)
class BegunUpload:
    """An object that is written in pieces, and not there yet. key: its full name at the storage. upload: its id."""

    key: str
    upload: str


class ObjectWriter(ABC):
    """A new object, written front to back. It is there at the latest after `close`.

    Leaving a `with` block by an exception, or dropping the writer unclosed, aborts: nothing stays behind.
    was_beaten: of one that `Store.open_new` made, after `close`: another object was there first, and this one is gone.
    """

    def __init__(self) -> None:
        self.closed = False
        self.was_beaten = False
        self._position = 0

    def write(self, data: bytes | memoryview) -> int:
        """Writes all of `data` (any buffer), returns its bytes. StorageError says if the disk is full."""
        nbytes = memoryview(data).nbytes
        if nbytes:
            self._write(memoryview(data).cast("B"))
        self._position += nbytes
        return nbytes

    def room(self, nbytes: int) -> np.ndarray | None:  # noqa: ARG002 - what writers without any are asked for
        """Where the next bytes may be made, uint8 [nbytes], so that `write`, when it is given just that, need not copy
        them; good until the next call. None where there is no such place."""
        return None

    def tell(self) -> int:
        return self._position

    def flush(self) -> None:
        """Nothing to do: nothing is buffered here. Libraries call it."""
        return

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._close()

    def abort(self) -> None:
        """Drops the object. Safe to call after `close` or twice: then it does nothing."""
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
    """A root URI. Paths are POSIX and relative to it; "" is the object at the root. Thread-safe, picklable.

    uri: the root, safe to show: no credentials, no query. traffic: of weights and parts, what `read_into` read and
    writers wrote, since this store was opened.
    """

    is_near: ClassVar[bool] = False  # reads cost no round trip: many small ones are as fast as a large one
    repeats_reads: ClassVar[bool] = (
        True  # what fails was tried several times already, and asking again is in vain
    )
    uri: str
    traffic: Traffic

    def url(self, path: str) -> str:
        """Full URI of an object, safe to show."""
        return f"{self.uri.rstrip('/')}/{path}" if path else self.uri

    def settle(self, objects: Iterable[ObjectInfo]) -> None:  # noqa: B027 - nothing to do where versions count writes
        """Returns once whatever changes one of these gives it another version."""

    def release(self) -> None:  # noqa: B027 - nothing to do for most
        """Closes the files that are open, each as soon as no read uses it. What is asked for next is opened anew."""

    @abstractmethod
    def pin(self, info: ObjectInfo) -> None:
        """From now on the object is read as this one alone: SourceChanged from `check`, `confirm`, or a read."""

    @abstractmethod
    def check(self, path: str) -> None:
        """SourceChanged where the object there is not the pinned one. NotFound. No request where reads tell."""

    @abstractmethod
    def confirm(self) -> None:
        """SourceChanged unless every pinned object that was read since the last call is the one that was pinned, and
        was all the time. NotFound."""

    def exists(self, path: str) -> bool:
        """Whether an object (not a directory) is at `path`."""
        raise NotImplementedError

    def size(self, path: str) -> int:
        """Bytes of an object. NotFound."""
        return self.info(path).nbytes

    def has_file(self, path: str) -> bool:
        """As `exists`, for files whose absence says what a place is: NoRegularFile where a folder has the name. Object
        stores have no folders."""
        return self.exists(path)

    @abstractmethod
    def info(self, path: str) -> ObjectInfo:
        """Size and version of an object. NotFound."""

    @abstractmethod
    def read(self, path: str) -> bytes:
        """A whole small object. NotFound."""

    @abstractmethod
    def read_into(self, path: str, start: int, out: np.ndarray) -> None:
        """Fills `out` (C-contiguous) with the bytes from `start`. StorageError if the object ends early."""

    def read_pieces_into(
        self, path: str, start: int, out: np.ndarray, piece_nbytes: int, seen: Callable[[memoryview], None]
    ) -> None:
        """`read_into`, so many bytes at a time: `seen` is called with each piece, in order, as soon as it is there."""
        for at in range(0, out.size, piece_nbytes):
            piece = out[at : at + piece_nbytes]
            self.read_into(path, start + at, piece)
            seen(piece.data)

    def read_chunks_into(self, path: str, start: int, out: np.ndarray, digests: bytes, nbytes: int) -> int:  # noqa: ARG002
        """`read_into`, as far as each chunk of so many bytes has its xxh3_128 digest (16 bytes, big-endian); the bytes
        of `out` that are filled so. Fewer than all say that something is wrong there, or that this store has no such
        way: read_pieces_into tells."""
        return 0

    def read_all_into(self, path: str, reads: Sequence[tuple[int, np.ndarray]]) -> None:
        """`read_into` for each (start, out), over a network side by side. An error's byte range spans them all."""
        for start, out in reads:
            self.read_into(path, start, out)

    def announce(self, path: str, start: int, nbytes: int) -> None:  # noqa: B027 - a hint, nothing to do for most
        """Says that this range is read next."""

    def read_range(self, path: str, byte_range: ByteRange) -> np.ndarray:
        """Fresh, writable uint8 [byte_range.nbytes]. StorageError where the object ends before."""
        out = np.empty(byte_range.nbytes, np.uint8)
        self.read_into(path, byte_range.start, out)
        return out

    def read_versioned(self, path: str) -> tuple[bytes, str]:
        """A whole small object and the version that has this content. NotFound.

        Looks before and after it reads, so it is for what is rarely asked.
        """
        while True:
            before = self.info(path)
            data = self.read(path)
            if self.info(path) == before:
                return data, before.version

    def open_reader(self, path: str) -> BinaryIO:
        """A seekable reader over `read_into`, for libraries that want a file. NotFound."""
        raw = _RangeReader(self, path, self.size(path))
        return cast(BinaryIO, io.BufferedReader(raw, _READER_BUFFER_NBYTES))

    @abstractmethod
    def open_writer(self, path: str) -> ObjectWriter:
        """A new object at `path`, replacing what is there; makes parent directories."""

    @abstractmethod
    def open_new(self, path: str) -> ObjectWriter:
        """A new object at `path` where nothing is: nobody sees it before `close`, which puts it there in one step, or
        drops it where something is there by then (`was_beaten`; whoever's it is). Makes parent directories.

        Looking and putting are one step on local disk with hard links and on S3 (`If-None-Match`). Elsewhere, and with
        S3 servers that do not know the condition or look before they put, another object that comes in between is
        replaced: so it is for objects of which all who write them write the same bytes.
        """

    @abstractmethod
    def write(self, path: str, data: bytes) -> None:
        """Replaces the object at `path`: readers see the old or the new content, nothing between."""

    @abstractmethod
    def create(self, path: str, data: bytes) -> bool:
        """Makes the object, atomically with its content, if none is there. False if there is one already.

        Where answers can get lost (any network), True as well if the very same bytes are there: they count as our own,
        so what has to be told apart has to differ, as commits do by their attempt's id.
        """

    def begun_uploads(self, prefix: str = "") -> Sequence[BegunUpload]:  # noqa: ARG002 - most storages have none
        """What was begun to be written in the directory `prefix` and below, and not ended: nobody sees it, but it takes
        space."""
        return []

    def abandon(self, uploads: Iterable[BegunUpload]) -> None:  # noqa: B027 - most storages have none
        """Gives them up. A writer that is still at work on one fails."""

    def abandon_uploads(self, prefix: str = "") -> None:
        """Gives up all that `begun_uploads` has now, by writers that died."""
        self.abandon(self.begun_uploads(prefix))

    @abstractmethod
    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """All objects in the directory `prefix` and below, sorted by path; [] where nothing is."""

    @abstractmethod
    def delete(self, paths: Iterable[str]) -> None:
        """Removes objects, in their order where they go one by one; missing ones are fine.

        Whatever is there goes, whoever made it: for names that nobody else can have. `delete_unchanged` is for others.
        """

    @abstractmethod
    def delete_unchanged(self, versions: Mapping[str, str]) -> Sequence[str]:
        """Removes the objects that still have the version that `list` or `info` said; missing ones are fine.

        versions: {path: version}. Returns the paths at which another object is now; those stay. Looking and deleting
        are one step on local disk, in memory:// and on S3 (`If-Match`), where versions of equal content are equal.
        Elsewhere, and with S3 servers that do not know the condition, another object that comes in between is lost.
        """

    def check_path(self, path: str) -> str:
        """`path` if it stays under the root, else StorageError: headers written by strangers name paths."""
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
