"""The requests that a store is made of."""

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

_SLOWEST_SEND = 256 << 10  # bytes a second that a body which is sent has to reach


class NewObject(Protocol):
    """A new object in the making; errors are the library's."""

    def write(self, data: memoryview) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...


class Client(ABC):
    """One attempt each, on `loop`; paths are relative to the root. Every attempt ends, with a time-out if need be.

    Errors are those of the library behind it, FileNotFoundError where nothing is, or ours where trying again is no use.
    """

    delete_at_once: ClassVar[int] = 1
    tells_versions: ClassVar[bool] = False  # whether `read_into` does
    ends_when_cancelled: ClassVar[bool] = (
        False  # whether nothing of a cancelled attempt goes on, as it does in threads
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
        """Fills `view`, or raises. Returns the object's version, where the answer says it."""

    @abstractmethod
    async def write(self, path: str, data: bytes) -> None: ...

    @abstractmethod
    async def create(self, path: str, data: bytes) -> bool:
        """False where other content is there. Equal content is ours, where requests may be applied unanswered."""

    @abstractmethod
    async def list_page(self, prefix: str, after: str | None) -> tuple[list[ObjectInfo], str | None]:
        """A page of objects below the folder `prefix` (or that object itself), and what asks for the next page."""

    @abstractmethod
    async def delete(self, paths: Sequence[str]) -> None:
        """At most `delete_at_once`; missing ones are fine."""

    @abstractmethod
    async def delete_unchanged(self, versions: Mapping[str, str]) -> list[str]:
        """At most `delete_at_once`, {path: version}. Returns those that were not deleted: another object was there, or
        none, where the answer does not tell."""

    @abstractmethod
    def new_object(self, path: str, requests: Requests) -> NewObject: ...

    @abstractmethod
    def only_object(self, path: str, requests: Requests) -> NewObject:
        """One whose `close` raises FileExistsError, and leaves nothing of it, where something is at `path`."""

    async def begun_uploads(self, prefix: str) -> list[BegunUpload]:  # noqa: ARG002 - most have none
        """Unfinished uploads below the folder `prefix`, where this storage keeps such things."""
        return []

    async def abandon(self, upload: BegunUpload) -> None:  # noqa: B027 - most have none
        """Aborts one; it may have ended."""

    def seconds(self, sent_nbytes: int = 0) -> asyncio.Timeout:
        """What an attempt may take that sends so much and whose answer is small; TimeoutError after that."""
        return asyncio.timeout(self.transfer.request_timeout + sent_nbytes / _SLOWEST_SEND)


class ShortAnswer(Exception):
    """Fewer bytes came than the object has there, or others at a second reading. May pass."""


def no_conditional_create(uri: str) -> StorageError:
    message = (
        "this storage cannot create an object only if it is not there, which keeps a run's shards apart; "
        "choose a target on local disk, s3://, gs:// or az://"
    )
    return StorageError(message, uri=uri)


def cut_object(wanted_stop: int, nbytes: int) -> CutObject:
    return CutObject(ends_early(wanted_stop - nbytes))
