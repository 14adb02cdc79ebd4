"""Microsoft's own emulator of Azure's blob storage on 127.0.0.1, from the npm package azurite."""

from __future__ import annotations

import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.servers.ports import free_ports
from tests.servers.processes import ServerProcess, listens

PROGRAM = "azurite-blob"
_CONTAINER = "container"
_ACCOUNT = "devstoreaccount1"
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # of every Azurite


class Azurite:
    """The emulator, which answers when the constructor returns.

    uri: URI of its only container. storage_options: options for adlfs.
    """

    uri = f"az://{_CONTAINER}"

    def __init__(self, folder: Path) -> None:
        program = shutil.which(PROGRAM)
        assert program is not None, "npm install -g azurite"
        (port,) = free_ports(1)
        connection = (
            f"DefaultEndpointsProtocol=http;AccountName={_ACCOUNT};AccountKey={_KEY};"
            f"BlobEndpoint=http://127.0.0.1:{port}/{_ACCOUNT};"
        )
        self.storage_options = {"connection_string": connection}
        listening = ("--blobHost", "127.0.0.1", "--blobPort", str(port))
        command = [
            program,
            *listening,
            "--location",
            str(folder),
            "--disableTelemetry",
            "--skipApiVersionCheck",
        ]
        self._server = ServerProcess(command, folder, lambda: listens(port))
        self._container.create_container()

    def stop(self) -> None:
        self._server.kill()

    def put(self, name: str, data: bytes) -> None:
        """Writes a blob. This and the next two use Microsoft's own client."""
        self._container.upload_blob(name, data, overwrite=True)

    def get(self, name: str) -> bytes:
        return bytes(self._container.download_blob(name).readall())

    def names(self, prefix: str) -> list[str]:
        return sorted(self._container.list_blob_names(name_starts_with=prefix))

    @cached_property
    def _container(self) -> Any:
        from azure.storage.blob import BlobServiceClient

        service = BlobServiceClient.from_connection_string(self.storage_options["connection_string"])
        return service.get_container_client(_CONTAINER)
