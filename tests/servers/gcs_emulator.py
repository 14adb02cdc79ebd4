"""`python -m tests.servers.gcs_emulator PORT BUCKET`: gcp-storage-emulator, with what it lacks and a run relies on.

As Google documents it, `ifGenerationMatch=0` is answered with 412 if there is an object, and the deletion of an upload
with 499. It handles one request at a time, so creating an object is atomic.
"""

from __future__ import annotations

import sys
from functools import partial
from http.server import HTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers.buckets import create_bucket
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage


class _TakenError(Exception):
    pass


class _Objects(Storage):  # type: ignore[misc] # it has no types
    """The emulator's objects. only_if_new: whether the current request must not replace an object."""

    only_if_new = False

    def create_file(self, bucket_name: str, file_name: str, *content: Any, **options: Any) -> None:
        if self.only_if_new and self._has(bucket_name, file_name):
            raise _TakenError
        super().create_file(bucket_name, file_name, *content, **options)

    def _has(self, bucket_name: str, file_name: str) -> bool:
        try:
            self.get_file_obj(bucket_name, file_name)
        except NotFound:
            return False
        return True


class _Handler(RequestHandler):  # type: ignore[misc]
    def do_POST(self) -> None:  # noqa: N802
        self._conditional(super().do_POST)

    def do_PUT(self) -> None:  # noqa: N802
        self._conditional(super().do_PUT)

    def do_DELETE(self) -> None:  # noqa: N802
        if "upload_id" in self._query:
            self._answer(499)
        else:
            super().do_DELETE()

    @property
    def _query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query)

    def _conditional(self, answer: Any) -> None:
        self.storage.only_if_new = self._query.get("ifGenerationMatch") == ["0"]
        try:
            answer()
        except _TakenError:
            self._answer(412)

    def _answer(self, status: int) -> None:
        self.send_response(status, "-")
        self.send_header("Content-Length", "0")
        self.end_headers()


def main(port: int, bucket: str) -> None:
    storage = _Objects(use_memory_fs=True)
    create_bucket(bucket, storage)
    with HTTPServer(("127.0.0.1", port), partial(_Handler, storage)) as server:
        server.serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
