"""The single requests that a store is built on."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

from arrowquant_dist.config import Transfer
from arrowquant_dist.errors import CutObject, StorageError
from arrowquant_dist.storage.base import BegunUpload, ObjectInfo
from arrowquant_dist.storage.remote.requests import Requests
from arrowquant_dist.storage.system_errors import ends_early
from arrowquant_dist.storage.traffic import Traffic

_SLOWEST_SEND = 256 << 10  # minimum rate at which a body must be sent, in bytes per second


class NewObject(Protocol):
    """A new object being written; errors are the library's."""

    def write(self, data: memoryview) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...


class Client(ABC):
    """Makes single attempts at requests, on `loop`; paths are relative to the root. Every attempt ends, by a time-out
    if need be.

    Errors are those of the underlying library, FileNotFoundError if there is nothing, or ours if trying again is
    useless.
    """

    delete_at_once: ClassVar[int] = 1
    tells_versions: ClassVar[bool] = False  # whether `read_into` does
    ends_when_cancelled: ClassVar[bool] = (
        False  # whether a cancelled attempt stops entirely; in a thread it would continue
    )
    loop: asyncio.AbstractEventLoop

    def __init__(self, transfer: Transfer, traffic: Traffic) -> None:
        self.transfer, self.traffic = transfer, traffic

    @abstractmethod
    async def info(self, path: str) -> ObjectInfo: ...

    @abstractmethod
    async def read(self, path: str) -> bytes: ...

    @abstractmethod
    async def read_into(self, path: str, start: int, view: memoryview) -> str | None:
        """Fills `view`, or raises. Returns the object's version, if the response tells it."""

    @abstractmethod
    async def write(self, path: str, data: bytes) -> None: ...

    @abstractmethod
    async def create(self, path: str, data: bytes) -> bool:
        """False if other content is there. Equal content is ours if requests may be applied without a response."""

    @abstractmethod
    async def list_page(self, prefix: str, after: str | None) -> tuple[list[ObjectInfo], str | None]:
        """A page of the objects below the folder `prefix` (or that object itself), and the token for the next page."""

    @abstractmethod
    async def delete(self, paths: Sequence[str]) -> None:
        """Deletes at most `delete_at_once` objects; missing ones are ignored."""

    @abstractmethod
    async def delete_unchanged(self, versions: Mapping[str, str]) -> list[str]:
        """Deletes at most `delete_at_once` objects. versions: {path: version}. Returns those that were not deleted:
        another object was there, or none if the response does not tell."""

    @abstractmethod
    def new_object(self, path: str, requests: Requests) -> NewObject: ...

    @abstractmethod
    def only_object(self, path: str, requests: Requests) -> NewObject:
        """A new object whose `close` raises FileExistsError, leaving nothing of it, if something is at `path`."""

    async def begun_uploads(self, prefix: str) -> list[BegunUpload]:  # noqa: ARG002 - most have none
        """Unfinished uploads below the folder `prefix`, if the storage has such."""
        return []

    async def abandon(self, upload: BegunUpload) -> None:  # noqa: B027 - most have none
        """Aborts an upload, which may have ended already."""

    def seconds(self, sent_nbytes: int = 0) -> asyncio.Timeout:
        """The time-out of an attempt that sends `sent_nbytes` and gets a small response; it raises TimeoutError."""
        return asyncio.timeout(self.transfer.request_timeout + sent_nbytes / _SLOWEST_SEND)


class ShortAnswer(Exception):
    """Fewer bytes arrived than the object has there, or a second reading gave others. May pass."""


def no_conditional_create(uri: str) -> StorageError:
    message = (
        "this storage can't create an object only if none exists yet, which is what keeps a run's shards apart; "
        "choose a target on local disk, s3://, gs:// or az://"
    )
    return StorageError(message, uri=uri)


def cut_object(wanted_stop: int, nbytes: int) -> CutObject:
    return CutObject(ends_early(wanted_stop - nbytes))
