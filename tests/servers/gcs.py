"""An emulator of Google's JSON API on 127.0.0.1 (gcs_emulator.py)."""

from __future__ import annotations

import sys
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.servers.ports import free_ports
from tests.servers.processes import ServerProcess, listens

_BUCKET = "bucket"


class Gcs:
    """The emulator, which answers when the constructor returns.

    uri: URI of its only bucket. storage_options: options for gcsfs.
    """

    uri = f"gs://{_BUCKET}"

    def __init__(self, folder: Path) -> None:
        (port,) = free_ports(1)
        self._endpoint_url = f"http://127.0.0.1:{port}"
        self.storage_options = {"endpoint_url": self._endpoint_url, "token": "anon", "project": "tests"}
        command = [sys.executable, "-m", "tests.servers.gcs_emulator", str(port), _BUCKET]
        self._server = ServerProcess(command, folder, lambda: listens(port))

    def stop(self) -> None:
        self._server.kill()

    def put(self, name: str, data: bytes) -> None:
        """Writes an object. This and the next two use Google's own client."""
        self._bucket.blob(name).upload_from_string(data)

    def get(self, name: str) -> bytes:
        return bytes(self._bucket.blob(name).download_as_bytes())

    def names(self, prefix: str) -> list[str]:
        return sorted(blob.name for blob in self._bucket.list_blobs(prefix=prefix))

    @cached_property
    def _bucket(self) -> Any:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud.storage import Client

        options = {"api_endpoint": self._endpoint_url}
        return Client("tests", AnonymousCredentials(), client_options=options).bucket(_BUCKET)
