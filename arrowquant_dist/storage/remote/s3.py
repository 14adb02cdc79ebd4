"""S3 through s3fs: its session, credentials and options, with one request at a time and S3's own error codes.

s3fs's file and cat methods are not used: they repeat requests five times within five times, join responses in memory,
and lose S3's error. Ranges are requested by repeating botocore's first request (repeated.py), and are received from
the connection directly into the caller's memory (received.py): 1.5 times as fast as s3fs's cat_ranges with 0.4 of its
CPU time, 1.2 times as fast as obstore (Rust) with 0.7 of its CPU time (`python -m tests.benchmarks object-store`).

Who detects a wrong byte: in a body that is sent, S3 (CRC-32, and over http also the signature's SHA-256); in a whole
object that is read, botocore if S3 keeps a checksum of all of it; in a range that is read, nobody, since S3 has no
checksums of ranges. TLS protects the transfer, and over plain http `Transfer.read_twice` does.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from arrowquant_dist.config import Transfer
from arrowquant_dist.errors import StorageError, counted
from arrowquant_dist.storage.base import BegunUpload, ObjectInfo
from arrowquant_dist.storage.remote.client import NewObject, ShortAnswer, cut_object
from arrowquant_dist.storage.remote.faults import status_of
from arrowquant_dist.storage.remote.received import receive_into
from arrowquant_dist.storage.remote.repeated import RepeatedReads
from arrowquant_dist.storage.remote.requests import Requests
from arrowquant_dist.storage.remote.s3fs_private import call_s3
from arrowquant_dist.storage.remote.upload import MultipartClient, OnlyUpload, Upload
from arrowquant_dist.storage.traffic import Traffic

READ_NBYTES = 1 << 20  # size of a read from a response, which is what a request holds of it
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_NOT_FOR_US = (403, 404, 405, 501)  # listing uploads needs a permission, and not every server supports it
_MOST_SOCKETS = 4  # as a multiple of `requests`: stores in one process with the same options share a session


def s3_options(options: Mapping[str, Any], transfer: Transfer) -> dict[str, Any]:
    """s3fs's options with our time-outs and without botocore's repetitions, unless the user set them.

    options: the user's, which override those in fsspec's configuration.
    """
    from fsspec.config import apply_config
    from s3fs import S3FileSystem

    given = dict(apply_config(S3FileSystem, dict(options)))
    ours = {
        "connect_timeout": transfer.connect_timeout,
        "read_timeout": transfer.request_timeout,
        "max_pool_connections": _MOST_SOCKETS * transfer.requests,
        "retries": {"total_max_attempts": 1},
    }
    return {**given, "config_kwargs": {**ours, **(given.get("config_kwargs") or {})}}


class S3Client(MultipartClient):
    """A client for S3 and servers that speak its protocol (SeaweedFS, MinIO, R2 and others). root: bucket/prefix."""

    delete_at_once: ClassVar[int] = 1000
    tells_versions: ClassVar[bool] = True
    ends_when_cancelled: ClassVar[bool] = True

    def __init__(self, fs: Any, root: str, transfer: Transfer, traffic: Traffic) -> None:
        super().__init__(transfer, traffic)
        fs.retries = 1  # s3fs makes one attempt; we repeat
        self._fs, self.loop = fs, fs.loop
        self.bucket, prefix, _ = fs.split_path(root)
        self._prefix = prefix.strip("/")
        self._repeated = RepeatedReads(fs, self.bucket)

    def key(self, path: str) -> str:
        """The object's key. Raises FileNotFoundError for the bucket itself, which is not an object."""
        key = "/".join(filter(None, (self._prefix, path)))
        if not key:
            raise FileNotFoundError(path)
        return key

    async def call(self, method: str, body: io.BytesIO | None = None, **arguments: Any) -> Any:
        """Makes one request. Raises botocore's errors, or TimeoutError.

        body: sent whole, from its own memory: the event loop would copy bytes objects at once, whereas aiohttp uses
        the buffer of a BytesIO directly, unless the BytesIO was made from bytes, which Python copies.
        """
        if body is not None:
            body.seek(0)
            arguments["Body"] = body
        await self._fs.set_session()  # before the time-out: loading S3's model takes a second of CPU, once
        async with self.seconds(body.getbuffer().nbytes if body is not None else 0):
            try:
                return await call_s3(self._fs, method, {"Bucket": self.bucket, **arguments})
            except OSError as error:
                if error.__cause__ is not None and hasattr(error.__cause__, "response"):
                    raise error.__cause__ from None  # s3fs's translation loses the code
                raise

    async def info(self, path: str) -> ObjectInfo:
        found = await self.call("head_object", Key=self.key(path))
        return ObjectInfo(path, found["ContentLength"], _version(found["ETag"], found["ContentLength"]))

    async def read(self, path: str) -> bytes:
        answer = await self.call("get_object", Key=self.key(path))
        body = answer["Body"]
        async with body:  # no `as`: older versions return something else
            data: bytes = await body.read()
        if len(data) != answer["ContentLength"]:
            raise ShortAnswer(f"{len(data)} of {counted(answer['ContentLength'], 'byte')} arrived")
        return data

    async def read_into(self, path: str, start: int, view: memoryview) -> str | None:
        stop = start + len(view)
        try:
            answer = await self._ranged(self.key(path), f"bytes={start}-{stop - 1}")
        except Exception as error:
            if status_of(error) == 416:
                raise cut_object(stop, start) from error
            raise
        body = answer["Body"]
        async with body:
            nbytes = _object_nbytes(answer, start, stop)
            done = straight = await receive_into(body, view, self.traffic)
            try:
                while done < len(view) and (chunk := await body.read(READ_NBYTES)):
                    if done + len(chunk) > len(view):
                        raise ShortAnswer(f"more than {counted(len(view), 'byte')} arrived")
                    view[done : done + len(chunk)] = chunk
                    done += len(chunk)
            finally:
                self.traffic.add(read_nbytes=done - straight)
        if done < len(view):
            raise ShortAnswer(f"{done} of {counted(len(view), 'byte')} arrived")
        return _version(answer["ETag"], nbytes)

    async def _ranged(self, key: str, byte_range: str) -> Any:
        """The response to a read of one range."""
        await self._fs.set_session()
        async with self.seconds():
            if (answer := await self._repeated.ask(key, byte_range)) is not None:
                return answer
        seen = await self._repeated.watch()
        answer = await self.call("get_object", Key=key, Range=byte_range)
        await self._repeated.learn(key, seen)
        return answer

    async def write(self, path: str, data: bytes) -> None:
        await self.call("put_object", io.BytesIO(data), Key=self.key(path))

    async def create(self, path: str, data: bytes) -> bool:
        """Uses `If-None-Match: *`. A refusal may be the response to a repetition of our own write, since aiohttp
        repeats a PUT by itself if a kept connection breaks: then the content there is ours."""
        try:
            await self.call("put_object", io.BytesIO(data), Key=self.key(path), IfNoneMatch="*")
        except Exception as error:
            if status_of(error) != 412:
                raise
            return await self.read(path) == data
        return True

    async def list_page(self, prefix: str, after: str | None) -> tuple[list[ObjectInfo], str | None]:
        folder = "/".join(filter(None, (self._prefix, prefix)))
        more: dict[str, Any] = {"ContinuationToken": after} if after else {}
        below = f"{folder}/" if folder else ""
        page = await self.call("list_objects_v2", Prefix=below, **more)
        found = [self._listed(entry) for entry in page.get("Contents", ()) if not entry["Key"].endswith("/")]
        token = page.get("NextContinuationToken") if page.get("IsTruncated") else None
        if not found and after is None and token is None and folder:
            found = await self._object_itself(prefix)
        return found, token

    async def delete(self, paths: Sequence[str]) -> None:
        if len(paths) == 1:
            await self.call("delete_object", Key=self.key(paths[0]))
            return
        named = {"Objects": [{"Key": self.key(path)} for path in paths], "Quiet": True}
        answer = await self.call("delete_objects", Delete=named)
        for problem in answer.get("Errors", ()):
            if problem.get("Code") not in {"NoSuchKey", None}:
                raise _refusal(problem)

    async def delete_unchanged(self, versions: Mapping[str, str]) -> list[str]:
        """Uses `If-Match` for one object, ETags for several. AWS knows both since 2025, SeaweedFS since 2026."""
        tags = {path: version.rpartition("-")[0] for path, version in versions.items()}
        if len(tags) == 1:
            return await self._delete_one_unchanged(*tags.popitem())
        by_key = {self.key(path): path for path in tags}
        named = [{"Key": key, "ETag": f'"{tags[path]}"'} for key, path in by_key.items()]
        answer = await self.call("delete_objects", Delete={"Objects": named, "Quiet": True})
        changed = []
        for problem in answer.get("Errors", ()):
            if problem.get("Code") == "PreconditionFailed":
                changed.append(by_key[problem["Key"]])
            elif problem.get("Code") not in {"NoSuchKey", None}:
                raise _refusal(problem)
        return changed

    async def _delete_one_unchanged(self, path: str, tag: str) -> list[str]:
        try:
            await self.call("delete_object", Key=self.key(path), IfMatch=f'"{tag}"')
        except Exception as error:
            if status_of(error) not in (404, 412):
                raise
            return [path]
        return []

    def new_object(self, path: str, requests: Requests) -> NewObject:
        return Upload(self, path, requests)

    def only_object(self, path: str, requests: Requests) -> NewObject:
        return OnlyUpload(self, path, requests)

    async def begun_uploads(self, prefix: str) -> list[BegunUpload]:
        below = f"{'/'.join(filter(None, (self._prefix, prefix)))}/".lstrip("/")
        more: dict[str, Any] = {}
        found: list[BegunUpload] = []
        while True:
            try:
                page = await self.call("list_multipart_uploads", Prefix=below, **more)
            except Exception as error:
                if status_of(error) not in _NOT_FOR_US:
                    raise
                return found
            found += (BegunUpload(upload["Key"], upload["UploadId"]) for upload in page.get("Uploads", ()))
            if not page.get("IsTruncated"):
                return found
            more = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    async def abandon(self, upload: BegunUpload) -> None:
        await self.abort_upload(upload.key, upload.upload)

    async def abort_upload(self, key: str, upload: str) -> None:
        try:
            await self.call("abort_multipart_upload", Key=key, UploadId=upload)
        except Exception as error:
            if status_of(error) != 404:
                raise

    def _listed(self, entry: Mapping[str, Any]) -> ObjectInfo:
        path = entry["Key"].removeprefix(self._prefix).lstrip("/") if self._prefix else entry["Key"]
        return ObjectInfo(path, entry["Size"], _version(entry["ETag"], entry["Size"]))

    async def _object_itself(self, path: str) -> list[ObjectInfo]:
        try:
            return [await self.info(path)]
        except Exception as error:
            if status_of(error) != 404:
                raise
            return []


def _object_nbytes(answer: Mapping[str, Any], start: int, stop: int) -> int:
    """The whole object's size, from a response that has exactly its bytes [start, stop)."""
    said = _CONTENT_RANGE.fullmatch(answer.get("ContentRange") or "")
    if said is None:
        if (
            start == 0 and answer["ContentLength"] == stop
        ):  # a server may omit the header if the range is the whole object
            return stop
        raise StorageError("the storage does not serve byte ranges; copy the object to one that does")
    first, last, nbytes = map(int, said.groups())
    if nbytes < stop:
        raise cut_object(stop, nbytes)
    if (first, last + 1) != (start, stop) or answer["ContentLength"] != stop - start:
        raise ShortAnswer(f"bytes {first}-{last} arrived instead of {start}-{stop - 1}")
    return nbytes


def _version(etag: str, nbytes: int) -> str:
    return f"{etag.strip(chr(34))}-{nbytes}"


def _refusal(problem: Mapping[str, Any]) -> BaseException:
    """What S3 said about one of the objects in a request, as the error for a request about that object alone."""
    from botocore.exceptions import ClientError

    status = {"AccessDenied": 403}.get(problem.get("Code", ""), 500)
    response = {"Error": dict(problem), "ResponseMetadata": {"HTTPStatusCode": status}}
    refusal: BaseException = ClientError(response, "DeleteObjects")
    return refusal
