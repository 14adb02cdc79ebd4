"""A bucket behind a proxy that fails according to a script, and stores that reach it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from arrowquant_dist.config import Storage, Transfer
from arrowquant_dist.storage.base import Store
from arrowquant_dist.storage.open import open_store
from tests.servers.fault_proxy import FaultProxy
from tests.servers.faults import Fault
from tests.servers.fixtures import Bucket
from tests.servers.seaweedfs import SeaweedFS

# The smallest sizes that are allowed, with patience, so that a pause of the machine is not taken for a fault.
PIECES = Transfer(range_bytes=64 << 10, upload_bytes=5 << 20, request_timeout=60.0, retries=6, backoff=0.01)
IMPATIENT = replace(PIECES, request_timeout=1.0, retries=20)  # for tests in which something stalls


@dataclass(frozen=True)
class Flaky:
    """A bucket behind a proxy. store: a store that goes through the proxy. bucket: the bucket behind it."""

    bucket: Bucket
    proxy: FaultProxy
    options: dict[str, Any]

    def store(self, transfer: Transfer = PIECES) -> Store:
        return open_store(self.bucket.uri, Storage(self.options, transfer))

    def fail(self, *faults: Fault) -> None:
        self.proxy.rewrite(*faults)

    def put(self, path: str, data: bytes) -> None:
        self.bucket.objects.put(f"{self.bucket.uri}/{path}", data)

    def get(self, path: str) -> bytes:
        return self.bucket.objects.get(f"{self.bucket.uri}/{path}")

    def sizes(self) -> dict[str, int]:
        return self.bucket.objects.sizes(self.bucket.uri)

    def uploads(self) -> list[str]:
        return self.bucket.objects.uploads(self.bucket.uri)


@pytest.fixture
def flaky(seaweedfs: SeaweedFS, bucket: Bucket) -> Iterator[Flaky]:
    with FaultProxy(seaweedfs.port) as proxy:
        yield Flaky(bucket, proxy, seaweedfs.options_at(proxy.endpoint_url))
