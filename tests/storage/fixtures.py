"""Places on each kind of storage, for tests that have to pass on all of them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from arrowquant_dist.config import Storage
from arrowquant_dist.storage.pins import seconds_until_settled
from tests.servers.azurite import Azurite
from tests.servers.fixtures import Bucket
from tests.servers.gcs import Gcs
from tests.servers.seaweedfs import SeaweedFS
from tests.storage.places import EmulatedPlace, LocalPlace, MemoryPlace, Place, S3Place


@pytest.fixture(scope="session", autouse=True)
def nothing_is_waited_for() -> Iterator[None]:
    """Opens sources at once that a test has just written, and skips fsync.

    Waiting for a tick of the file system's clock each time would take minutes in all, and most tests change no source
    that they have opened. Those that do ask for `ticks`. Tens of thousands of fsyncs of 3 ms each would take minutes
    too, and nobody cuts the power. Tests of power cuts replace fsync themselves, and programs that tests start call it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("arrowquant_dist.storage.local.seconds_until_settled", lambda _changed, _now: 0.0)
        patch.setattr("os.fsync", lambda _descriptor: None)
        yield


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits for the clock after a file was written, as the package does for users."""
    monkeypatch.setattr("arrowquant_dist.storage.local.seconds_until_settled", seconds_until_settled)


@pytest.fixture(scope="session")
def bucket_of_places(seaweedfs: SeaweedFS) -> Bucket:
    """One bucket in which each place has a folder, since creating and deleting a bucket takes longer than most
    tests."""
    return Bucket(seaweedfs.make_bucket("places"), seaweedfs.storage_options, seaweedfs.objects)


@pytest.fixture(params=["local", "file", "memory", "s3", "gcs", "azurite"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    root = tmp_path / "root"
    if request.param == "local":
        yield LocalPlace(str(root), root)
    elif request.param == "file":
        yield LocalPlace(f"file://{root}", root)
    elif request.param == "s3":
        bucket: Bucket = request.getfixturevalue("bucket_of_places")
        yield S3Place(
            f"{bucket.uri}/{uuid.uuid4().hex}/root", Storage(bucket.storage_options), bucket.objects
        )
    elif request.param in ("gcs", "azurite"):
        server: Gcs | Azurite = request.getfixturevalue(request.param)
        yield EmulatedPlace(f"{server.uri}/{uuid.uuid4().hex}/root", server)
    else:
        name = f"/test-{uuid.uuid4().hex}"
        yield MemoryPlace(f"memory:/{name}", name)
        fs = fsspec.filesystem("memory")
        for path in fs.find(name):
            fs.rm_file(path)
