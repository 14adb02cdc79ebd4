"""Accesses objects of an S3 server with botocore alone, so that set-up and checks bypass the code under test and
s3fs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.config
import botocore.session

from tests.servers import folders

_DELETE_AT_ONCE = 1000  # as many as DeleteObjects accepts


class Objects:
    """A signed client; URIs are s3://bucket/key.

    attempts: number of attempts at each request, with backoff. seconds: time limit of each.
    """

    def __init__(
        self, endpoint_url: str, key: str, secret: str, *, attempts: int = 8, seconds: float = 60.0
    ) -> None:
        self.client: Any = botocore.session.Session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=endpoint_url,
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            config=botocore.config.Config(
                connect_timeout=seconds,
                read_timeout=seconds,
                retries={"total_max_attempts": attempts, "mode": "standard"},
                s3={"addressing_style": "path"},
            ),
        )

    def put(self, uri: str, content: bytes) -> None:
        bucket, key = _split(uri)
        self.client.put_object(Bucket=bucket, Key=key, Body=content)

    def get(self, uri: str) -> bytes:
        bucket, key = _split(uri)
        body: bytes = self.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        return body

    def content_type(self, uri: str) -> str:
        bucket, key = _split(uri)
        kind: str = self.client.head_object(Bucket=bucket, Key=key)["ContentType"]
        return kind

    def delete(self, uri: str) -> None:
        bucket, key = _split(uri)
        self.client.delete_object(Bucket=bucket, Key=key)

    def sizes(self, root: str) -> dict[str, int]:
        """{path below root: size in bytes} of every object there."""
        bucket, prefix = _folder(root)
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        found = (entry for page in pages for entry in page.get("Contents", ()))
        return {entry["Key"].removeprefix(prefix): entry["Size"] for entry in found}

    def uploads(self, root: str) -> list[str]:
        """Paths below root with a multipart upload that is neither completed nor aborted."""
        bucket, prefix = _folder(root)
        pages = self.client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket)
        keys = (upload["Key"] for page in pages for upload in page.get("Uploads", ()))
        return [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]

    def upload_folder(self, folder: Path, root: str) -> None:
        """Copies every file below `folder` to the same path below `root`."""
        folders.upload(folder, self.put, root)

    def download_folder(self, root: str, folder: Path) -> Path:
        """Copies every object below `root` to the same path below `folder`, and returns `folder`."""
        return folders.download(self.sizes(root), self.get, root, folder)

    def clear(self, bucket: str) -> None:
        """Deletes every object of the bucket and aborts its uploads."""
        for upload in self._open_uploads(bucket):
            self.client.abort_multipart_upload(Bucket=bucket, **upload)
        keys = [*self.sizes(f"s3://{bucket}")]
        for start in range(0, len(keys), _DELETE_AT_ONCE):
            named = [{"Key": key} for key in keys[start : start + _DELETE_AT_ONCE]]
            self.client.delete_objects(Bucket=bucket, Delete={"Objects": named, "Quiet": True})

    def _open_uploads(self, bucket: str) -> Iterator[dict[str, str]]:
        for page in self.client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket):
            for upload in page.get("Uploads", ()):
                yield {"Key": upload["Key"], "UploadId": upload["UploadId"]}


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def _folder(root: str) -> tuple[str, str]:
    bucket, key = _split(root.rstrip("/"))
    return bucket, f"{key}/" if key else ""
