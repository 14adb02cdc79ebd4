"""A place of each storage, for every test that has to hold for all of them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from arrowquant_dist.config import Storage
from tests.servers.azurite import Azurite
from tests.servers.fixtures import Bucket
from tests.servers.gcs import Gcs
from tests.storage.places import EmulatedPlace, LocalPlace, MemoryPlace, Place, S3Place


@pytest.fixture(params=["local", "file", "memory", "s3", "gcs", "azurite"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    root = tmp_path / "root"
    if request.param == "local":
        yield LocalPlace(str(root), root)
    elif request.param == "file":
        yield LocalPlace(f"file://{root}", root)
    elif request.param == "s3":
        bucket: Bucket = request.getfixturevalue("bucket")
        yield S3Place(f"{bucket.uri}/a/root", Storage(bucket.storage_options), bucket.objects)
    elif request.param in ("gcs", "azurite"):
        server: Gcs | Azurite = request.getfixturevalue(request.param)
        yield EmulatedPlace(f"{server.uri}/{uuid.uuid4().hex}/root", server)
    else:
        name = f"/test-{uuid.uuid4().hex}"
        yield MemoryPlace(f"memory:/{name}", name)
        fs = fsspec.filesystem("memory")
        for path in fs.find(name):
            fs.rm_file(path)
