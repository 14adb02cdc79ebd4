"""s3fs and fsspec without the private names that the package uses: the same storage through public names."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pytest
from fsspec.asyn import AsyncFileSystem
from s3fs import S3FileSystem

from arrowquant_dist.config import Storage, Transfer
from arrowquant_dist.errors import NotFound, StorageError
from arrowquant_dist.storage.base import ByteRange, Store
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.remote import fsspec_private, s3fs_private
from tests.servers.faults import Fault, Kind
from tests.servers.fixtures import Bucket
from tests.servers.gcs import Gcs
from tests.servers.seaweedfs import SeaweedFS
from tests.storage.s3_faults import PIECES, Flaky

DATA = np.random.default_rng(7).bytes(PIECES.upload_bytes + 100_000)


@pytest.fixture(params=["private", "public"])
def _s3fs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "public":
        monkeypatch.setattr(s3fs_private, "_CALL", "_renamed")


@pytest.fixture
def _without_coroutines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsspec_private, "_PREFIX", "_renamed_")


def test_this_s3fs_and_this_fsspec_have_the_names() -> None:
    assert hasattr(S3FileSystem, s3fs_private._CALL)
    coroutines = ("info", "cat_file", "pipe_file", "find", "rm_file")
    assert all(hasattr(AsyncFileSystem, f"{fsspec_private._PREFIX}{name}") for name in coroutines)


def assert_all_there(store: Store) -> None:
    """Everything that a store does, once."""
    store.write("a/small", b"123")
    with store.open_writer("a/large") as writer:
        writer.write(memoryview(DATA))
    assert store.create("a/commit", b"mine")
    assert not store.create("a/commit", b"other")
    assert [(info.path, info.nbytes) for info in store.list("a")] == [
        ("a/commit", 4),
        ("a/large", len(DATA)),
        ("a/small", 3),
    ]
    assert store.info("a/large").nbytes == len(DATA)
    assert store.read("a/commit") == b"mine"
    assert store.read_range("a/large", ByteRange(70_000, 270_001)).tobytes() == DATA[70_000:270_001]
    with pytest.raises(NotFound):
        store.read("a/none")
    store.delete(["a/commit", "a/large", "a/none"])
    assert [info.path for info in store.list()] == ["a/small"]


@pytest.mark.usefixtures("_s3fs")
def test_a_store_on_s3_does_everything_either_way(flaky: Flaky) -> None:
    flaky.fail(Fault(Kind.SLOW_DOWN, limit=3))
    assert_all_there(flaky.store())
    abandoned = flaky.store().open_writer("b")
    abandoned.write(memoryview(DATA))
    flaky.store().abandon_uploads()
    abandoned.abort()
    assert not flaky.uploads()


@pytest.mark.usefixtures("_s3fs")
def test_what_a_user_sets_for_each_request_is_sent_with_those_that_know_it(
    seaweedfs: SeaweedFS, bucket: Bucket
) -> None:
    options = {**seaweedfs.storage_options, "s3_additional_kwargs": {"ContentType": "text/x-weights"}}
    store = open_store(bucket.uri, Storage(options, Transfer()))
    store.write("w", b"123")
    assert store.read("w") == b"123"  # get_object knows no ContentType
    assert bucket.objects.content_type(f"{bucket.uri}/w") == "text/x-weights"


@pytest.mark.usefixtures("_s3fs")
def test_wrong_credentials_are_named_and_not_shown_either_way(seaweedfs: SeaweedFS, bucket: Bucket) -> None:
    options: dict[str, Any] = {**seaweedfs.storage_options, "secret": "x" * 40}
    with pytest.raises(StorageError, match="secret does not belong") as caught:
        open_store(bucket.uri, Storage(options, Transfer())).read("w")
    assert "x" * 40 not in str(caught.value)


@pytest.mark.usefixtures("_without_coroutines")
def test_a_file_system_without_coroutines_is_called_in_threads(gcs: Gcs) -> None:
    assert_all_there(open_store(f"{gcs.uri}/{uuid.uuid4().hex}", Storage(gcs.storage_options, PIECES)))
