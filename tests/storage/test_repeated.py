"""Ranges that are read by repeating one of botocore's requests: which requests, with what, and what a refusal
becomes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from arrowquant_dist.config import Storage, Transfer
from arrowquant_dist.errors import NotFound, StorageError
from arrowquant_dist.storage.base import Store
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.remote import aiobotocore_private
from arrowquant_dist.storage.remote.objects import RemoteStore
from tests.servers.faults import Fault, Kind
from tests.servers.fixtures import Bucket
from tests.servers.seaweedfs import SeaweedFS
from tests.storage.s3_faults import Flaky

DATA = np.random.default_rng(9).bytes(300_000)
RANGE = r"\nrange:"
ONE = Transfer(retries=0, backoff=0.01)


def opened(server: SeaweedFS, bucket: Bucket, **options: Any) -> RemoteStore:
    store = open_store(bucket.uri, Storage({**server.storage_options, **options}, ONE))
    assert isinstance(store, RemoteStore)
    return store


def read(store: Store, path: str, start: int, stop: int) -> bytes:
    out = np.empty(stop - start, np.uint8)
    store.read_into(path, start, out)
    return out.tobytes()


@contextmanager
def by_botocore(store: RemoteStore) -> Iterator[list[Any]]:
    """The requests for ranges that go through botocore's client."""
    fs, asked = store._client._fs, []  # type: ignore[attr-defined]
    client = asyncio.run_coroutine_threadsafe(fs.set_session(), fs.loop).result()
    name = "before-send.s3.GetObject"
    handler = lambda request, **_: asked.append(request)  # noqa: E731 - it is taken back by identity
    client.meta.events.register(name, handler)
    try:
        yield asked
    finally:
        client.meta.events.unregister(name, handler)


@pytest.mark.parametrize("key", ["a", "b c+d%20=1/ü~*(1)'!@:&,$.x", "deep/er/shard=00001/part-0.parquet"])
def test_botocore_makes_the_first_request_of_a_bucket_and_others_are_made_like_it(
    seaweedfs: SeaweedFS, bucket: Bucket, key: str
) -> None:
    store = opened(seaweedfs, bucket)
    for name in ("first", key):
        store.write(name, DATA)
    with by_botocore(store) as asked:
        assert read(store, "first", 0, 9) == DATA[:9]
        for start, stop in ((0, len(DATA)), (7, 250_007), (299_999, 300_000)):
            assert read(store, key, start, stop) == DATA[start:stop]
            assert read(store, "first", start, stop) == DATA[start:stop]
    assert len(asked) == 1


@pytest.mark.parametrize(
    "options",
    [{"config_kwargs": {"signature_version": "s3"}}, {"config_kwargs": {"signature_version": "s3v4"}}],
    ids=["version 2", "version 4"],
)
def test_a_signature_of_another_kind_is_left_to_botocore(
    seaweedfs: SeaweedFS, bucket: Bucket, options: dict[str, Any]
) -> None:
    store = opened(seaweedfs, bucket, **options)
    store.write("a", DATA)
    with by_botocore(store) as asked:
        for start in range(5):
            assert read(store, "a", start, 1000) == DATA[start:1000]
    assert len(asked) == (5 if options["config_kwargs"]["signature_version"] == "s3" else 1)


def test_a_client_whose_connections_are_not_found_makes_every_request(
    seaweedfs: SeaweedFS, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "arrowquant_dist.storage.remote.repeated.http_session_of",
        lambda _client: aiobotocore_private.http_session_of(None),
    )
    store = opened(seaweedfs, bucket)
    store.write("a", DATA)
    with by_botocore(store) as asked:
        assert [read(store, "a", start, 1000) for start in range(3)] == [DATA[k:1000] for k in range(3)]
    assert len(asked) == 3


def test_what_a_user_sets_for_each_request_is_sent_again(flaky: Flaky) -> None:
    flaky.put("a", DATA)
    options = {**flaky.options, "s3_additional_kwargs": {"RequestPayer": "requester"}}
    store = open_store(flaky.bucket.uri, Storage(options, ONE))
    flaky.fail(Fault(Kind.SLOW_DOWN, header=r"\nx-amz-request-payer: requester", nth=3))
    assert read(store, "a", 0, 10) == read(store, "a", 0, 10) == DATA[:10]
    with pytest.raises(StorageError, match="SlowDown"):
        read(store, "a", 0, 10)
    assert flaky.proxy.requests == 3


@pytest.mark.parametrize("kind", [Kind.SLOW_DOWN, Kind.INTERNAL_ERROR])
def test_a_refusal_is_one_request_and_botocores_error(flaky: Flaky, kind: Kind) -> None:
    flaky.put("a", DATA)
    store = flaky.store(ONE)
    assert read(store, "a", 0, 10) == DATA[:10]
    flaky.fail(Fault(kind, header=RANGE))
    with pytest.raises(StorageError, match=kind.value.split()[1]):
        read(store, "a", 0, 10)
    assert flaky.proxy.requests == 1


def test_an_object_that_is_not_there_or_ends_early_is_told_as_ever(
    seaweedfs: SeaweedFS, bucket: Bucket
) -> None:
    store = opened(seaweedfs, bucket)
    store.write("a", DATA)
    assert read(store, "a", 0, 10) == DATA[:10]
    with by_botocore(store) as asked:
        with pytest.raises(NotFound):
            read(store, "none", 0, 10)
        with pytest.raises(StorageError, match="ends 10 bytes too early"):
            read(store, "a", 299_990, 300_010)
        with pytest.raises(StorageError, match="too early"):
            read(store, "a", 400_000, 400_010)
        assert read(store, "a", 0, 10) == DATA[:10]
    assert not asked


@pytest.mark.parametrize("status", [301, 307, 400])
def test_botocore_is_asked_again_where_the_storage_wants_another_request(
    seaweedfs: SeaweedFS, bucket: Bucket, status: int
) -> None:
    class Elsewhere:
        async def send(self, _request: Any) -> Any:
            return SimpleNamespace(
                status_code=status, raw=SimpleNamespace(close=lambda: closed.append(status))
            )

    closed: list[int] = []
    store = opened(seaweedfs, bucket)
    store.write("a", DATA)
    assert read(store, "a", 0, 10) == DATA[:10]
    repeated = store._client._repeated  # type: ignore[attr-defined]
    repeated._form = replace(repeated._form, http=Elsewhere())
    with by_botocore(store) as asked:
        assert [read(store, "a", 0, 10) for _ in range(3)] == [DATA[:10]] * 3
    assert (len(asked), closed) == (1, [status])
