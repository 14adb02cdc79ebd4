"""Sends an object to S3 in parts, while the caller makes the next ones."""

from __future__ import annotations

import io
from abc import abstractmethod
from collections import deque
from concurrent.futures import Future
from typing import Any, ClassVar

from arrowquant_dist.errors import StorageError
from arrowquant_dist.storage.remote.client import Client
from arrowquant_dist.storage.remote.faults import code_of, status_of
from arrowquant_dist.storage.remote.requests import Requests

_MOST_PARTS = 10_000  # S3's limit
_PIECE_NBYTES = 64 << 10  # maximum size of a read from a part
_REFUSALS = (404, 409, 412)  # the upload is gone, another one was in progress, something is there


class MultipartClient(Client):
    """A client for a storage that takes objects in parts, with S3's calls."""

    @abstractmethod
    def key(self, path: str) -> str:
        """The object's key in its bucket."""

    @abstractmethod
    async def call(self, method: str, body: io.BytesIO | None = None, **arguments: Any) -> Any:
        """Makes one S3 call, by botocore's name for it. body: what it sends besides `arguments`."""

    @abstractmethod
    async def abort_upload(self, key: str, upload: str) -> None:
        """Aborts an upload that was begun; does nothing if it is gone."""


class _Part(io.BytesIO):
    """The bytes of a part. A read returns at most what fits in a CPU's cache and is below the size for which malloc
    maps new memory each time: hashes are computed over 1 MiB at a time, and fresh pages for each of these, and for
    each part, took a fifth of the CPU time of an export from S3 to S3."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(size if size is None or size < 0 else min(size, _PIECE_NBYTES))


class Upload:
    """Writes an object: by one PUT if it fits in one part. Nothing is visible at `path` before `close`.

    All parts but the last have `upload_bytes`, as some servers require, and each is repeated on its own. Used by one
    thread.
    """

    condition: ClassVar[dict[str, str]] = {}  # arguments for the request that creates the object

    def __init__(self, client: MultipartClient, path: str, requests: Requests) -> None:
        self._client, self._path, self._requests = client, path, requests
        self._buffer = _Part()
        self._upload: str | None = None
        self._in_flight: deque[tuple[Future[str], _Part]] = deque()
        self._sent: list[_Part] = []  # their memory is reused for the next ones
        self._etags: list[str] = []
        self._nbytes = 0

    def write(self, data: memoryview) -> None:
        part_nbytes = self._client.transfer.upload_bytes
        while data:
            room = part_nbytes - self._buffer.tell()
            self._buffer.write(data[:room])
            data = data[room:]
            if self._buffer.tell() == part_nbytes:
                self._send()

    def close(self) -> None:
        """Once this returns, the object is there. After an error the outcome may be unknown; no upload is left open."""
        if self._upload is None:
            self._requests.run(self._requests.persist(self._put))
            return
        try:
            if self._buffer.tell():
                self._send()
            self._wait(until=0)
            self._requests.run(self._complete(self._upload))
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        for sending, _ in self._in_flight:
            sending.cancel()
        if self._upload is not None:
            upload, self._upload = self._upload, None
            key = self._client.key(self._path)
            self._requests.run(self._requests.persist(lambda: self._client.abort_upload(key, upload)))

    def _send(self) -> None:
        if self._upload is None:
            self._upload = self._requests.run(self._requests.persist(self._start))
        number = len(self._etags) + len(self._in_flight) + 1
        if number > _MOST_PARTS:
            raise StorageError(
                f"the object has more than {_MOST_PARTS} parts; raise transfer.upload_bytes, or choose smaller shards"
            )
        self._wait(until=self._client.transfer.parts_in_flight - 1)
        body, self._buffer = self._buffer, self._sent.pop() if self._sent else _Part()
        body.truncate()  # the last part may be shorter than the previous content of its memory
        self._nbytes += body.tell()
        self._in_flight.append((self._requests.submit(self._part(self._upload, number, body)), body))

    def _wait(self, until: int) -> None:
        """Waits until at most `until` parts are in flight; raises the error of a part that failed."""
        while len(self._in_flight) > until:
            sending, body = self._in_flight[0]
            self._etags.append(sending.result())
            self._in_flight.popleft()
            body.seek(0)
            self._sent.append(body)

    async def _put(self) -> None:
        self._client.traffic.add(written_nbytes=self._buffer.getbuffer().nbytes)
        await self._client.call(
            "put_object", self._buffer, Key=self._client.key(self._path), **self.condition
        )

    async def _start(self) -> str:
        answer = await self._client.call("create_multipart_upload", Key=self._client.key(self._path))
        return str(answer["UploadId"])

    async def _part(self, upload: str, number: int, body: io.BytesIO) -> str:
        async def attempt() -> str:
            self._client.traffic.add(written_nbytes=body.getbuffer().nbytes)
            answer = await self._call("upload_part", upload, body, PartNumber=number)
            return str(answer["ETag"])

        return await self._requests.persist(attempt)

    async def _complete(self, upload: str) -> None:
        parts = [{"PartNumber": i, "ETag": etag} for i, etag in enumerate(self._etags, 1)]

        async def attempt() -> None:
            given: dict[str, Any] = {"MultipartUpload": {"Parts": parts}, **self.condition}
            await self._call("complete_multipart_upload", upload, **given)

        try:
            await self._requests.persist(attempt)
        except Exception as error:
            if code_of(error) != "NoSuchUpload" or not await self._has_landed():
                raise

    async def _has_landed(self) -> bool:
        """Whether an attempt succeeded whose response was lost: an object with as many bytes and parts is there.

        Its path belongs to this attempt alone (`target.layout.part_path`), so it cannot be somebody else's.
        """
        found = await self._requests.persist(lambda: self._client.info(self._path))
        return found.nbytes == self._nbytes and found.version.endswith(f"-{len(self._etags)}-{self._nbytes}")

    async def _call(self, method: str, upload: str, body: io.BytesIO | None = None, **arguments: Any) -> Any:
        key = self._client.key(self._path)
        return await self._client.call(method, body, Key=key, UploadId=upload, **arguments)


class OnlyUpload(Upload):
    """Writes an object only if there is none: `If-None-Match: *`, which AWS supports since 2024. A server that
    ignores it replaces an object that was created since the check before.

    A refusal may be the response to a repetition of our own request that had landed: the caller looks at what is
    there, as after any other attempt that was first.
    """

    condition: ClassVar[dict[str, str]] = {"IfNoneMatch": "*"}

    def close(self) -> None:
        """Raises FileExistsError if something is there; nothing of this object remains then."""
        if self._requests.run(self._is_there()):
            self.abort()
            raise FileExistsError(self._path)
        try:
            super().close()
        except Exception as error:
            if status_of(error) not in _REFUSALS or not self._requests.run(self._is_there()):
                raise
            raise FileExistsError(self._path) from error

    async def _has_landed(self) -> bool:
        """Unknown, so False: an object of this size and as many parts may be another's."""
        return False

    async def _is_there(self) -> bool:
        try:
            await self._requests.persist(lambda: self._client.info(self._path))
        except Exception as error:
            if status_of(error) != 404:
                raise
            return False
        return True
