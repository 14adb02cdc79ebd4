"""Reads from a real S3 server: split, side by side, and right whatever happens to their connections."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from arrowquant_dist.config import Storage, Transfer
from arrowquant_dist.errors import StorageError
from arrowquant_dist.storage.base import ByteRange, Store
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.remote.requests import waits
from tests.servers.fault_proxy import TRICKLE_NBYTES, TRICKLE_SECONDS
from tests.servers.faults import Fault, Kind
from tests.servers.fixtures import Bucket
from tests.servers.seaweedfs import SeaweedFS
from tests.storage.s3_faults import IMPATIENT, PIECES, Flaky
from tests.waiting import until

DATA = np.random.default_rng(5).bytes((1 << 20) + 12_345)
RANGE = r"\nrange:"


@pytest.fixture
def whole(flaky: Flaky) -> Flaky:
    flaky.put("x", DATA)
    return flaky


def read(store: Store, start: int = 0, stop: int = len(DATA)) -> bytes:
    return store.read_range("x", ByteRange(start, stop)).tobytes()


@pytest.mark.parametrize(
    ("start", "stop", "requests"), [(0, len(DATA), 17), (7, 7 + (64 << 10), 1), (99, 100, 1), (1, 196_609, 3)]
)
def test_a_long_read_is_split_into_ranges(whole: Flaky, start: int, stop: int, requests: int) -> None:
    store = whole.store()
    assert read(store, start, stop) == DATA[start:stop]
    assert whole.proxy.requests == requests
    assert store.traffic.total.read_nbytes == stop - start
    assert store.traffic.total.retries == 0


@pytest.mark.parametrize("requests", [1, 3])
def test_as_many_requests_run_at_a_time_as_the_settings_say(whole: Flaky, requests: int) -> None:
    whole.fail(Fault(Kind.TRICKLE, header=RANGE))
    store = whole.store(replace(PIECES, requests=requests))
    nbytes = (requests + 1) * PIECES.range_bytes
    assert read(store, 0, nbytes) == DATA[:nbytes]
    assert whole.proxy.most_at_once == requests


PASSING = {
    "503": Fault(Kind.SLOW_DOWN, header=RANGE, probability=0.3),
    "500": Fault(Kind.INTERNAL_ERROR, header=RANGE, probability=0.3),
    "reset before an answer": Fault(Kind.RESET_REQUEST, header=RANGE, probability=0.3),
    "reset in a body": Fault(Kind.RESET_BODY, header=RANGE, probability=0.3),
    "cut bodies": Fault(Kind.TRUNCATED_BODY, header=RANGE, probability=0.3),
}


@pytest.mark.parametrize("name", PASSING)
def test_each_range_is_repeated_on_its_own_until_it_is_right(whole: Flaky, name: str) -> None:
    whole.fail(PASSING[name])
    store = whole.store()
    assert read(store) == DATA
    assert 2 <= len(whole.proxy.injected) <= whole.proxy.requests - 17
    assert store.traffic.total.retries <= len(whole.proxy.injected)
    assert store.traffic.total.read_nbytes >= len(DATA)


@pytest.mark.parametrize("kind", [Kind.STALLED_HEADERS, Kind.STALLED_BODY])
def test_stalled_ranges_are_given_up_after_the_request_timeout_and_repeated(whole: Flaky, kind: Kind) -> None:
    whole.fail(Fault(kind, header=RANGE, limit=2))
    started = time.perf_counter()
    store = whole.store(IMPATIENT)
    assert read(store) == DATA
    assert time.perf_counter() - started >= IMPATIENT.request_timeout
    assert len(whole.proxy.injected) == 2 <= whole.proxy.requests - 17
    assert store.traffic.total.read_nbytes >= len(DATA)


def test_a_slow_connection_is_not_given_up_while_bytes_come(whole: Flaky) -> None:
    nbytes = 128 << 10
    seconds = (nbytes / TRICKLE_NBYTES - 1) * TRICKLE_SECONDS
    assert seconds > IMPATIENT.request_timeout
    store = whole.store(replace(IMPATIENT, range_bytes=nbytes, retries=0))
    whole.fail(Fault(Kind.TRICKLE, header=RANGE))
    started = time.perf_counter()
    assert read(store, 0, nbytes) == DATA[:nbytes]
    assert time.perf_counter() - started >= seconds


def test_the_last_failure_is_the_error_when_the_retries_are_used_up(whole: Flaky) -> None:
    whole.fail(Fault(Kind.SLOW_DOWN, header=RANGE))
    store = whole.store(replace(PIECES, retries=2))
    with pytest.raises(StorageError, match=r"SlowDown.*|again.*SlowDown") as caught:
        read(store, 5, 10)
    assert (caught.value.uri, caught.value.byte_range) == (f"{whole.bucket.uri}/x", (5, 10))
    assert whole.proxy.requests == 3
    assert store.traffic.total.retries == 2


def test_nothing_is_written_to_the_callers_memory_after_an_error(whole: Flaky) -> None:
    whole.fail(
        Fault(Kind.TRICKLE, header=r"range: bytes=0-"), Fault(Kind.SLOW_DOWN, header=r"range: bytes=655")
    )
    store = whole.store(replace(PIECES, retries=0))
    out = np.zeros(2 * PIECES.range_bytes, np.uint8)
    with pytest.raises(StorageError):
        store.read_into("x", 0, out)
    out[:] = 7
    until(lambda: not whole.proxy.at_once)  # no byte of an answer is on its way any more
    assert (out == 7).all()


def test_an_object_that_is_replaced_between_two_ranges_is_an_error(whole: Flaky) -> None:
    store = whole.store()
    planned = store.info("x")
    assert read(store, 0, 10) == DATA[:10]
    whole.put("x", DATA[::-1])
    with pytest.raises(StorageError, match="replaced while it was read"):
        read(store, 10, 20)
    assert store.info("x") != planned
    assert read(store, 0, 10) == DATA[::-1][:10]


def test_a_flipped_byte_is_noticed_where_ranges_are_read_twice(whole: Flaky) -> None:
    whole.fail(Fault(Kind.FLIPPED_BYTE, header=RANGE, probability=0.2))
    assert read(whole.store(replace(PIECES, read_twice=True, retries=20))) == DATA
    assert whole.proxy.injected
    assert read(whole.store()) != DATA  # nobody can know without


def test_a_flipped_byte_of_a_whole_object_is_noticed_by_its_checksum(flaky: Flaky) -> None:
    flaky.put("x", DATA)
    flaky.fail(Fault(Kind.FLIPPED_BYTE, limit=1))
    assert flaky.store().read("x") == DATA
    assert len(flaky.proxy.injected) == 1


@pytest.mark.parametrize("seed", range(20))
def test_the_default_patience_outlasts_a_restart_of_half_a_minute(seed: int) -> None:
    random.seed(seed)
    default = list(waits(Transfer()))
    assert 30 < sum(default) < 63
    assert len(default) == Transfer().retries
    assert all(0.125 <= wait <= 30 for wait in default)


@pytest.mark.slow
def test_a_read_outlasts_a_restart_of_the_server(tmp_path: Path) -> None:
    server = SeaweedFS(tmp_path / "server")
    try:
        uri = server.make_bucket("kept")
        server.objects.put(f"{uri}/x", DATA)
        transfer = Transfer(range_bytes=64 << 10, retries=40, backoff=0.1)
        store = open_store(uri, Storage(server.storage_options, transfer))
        assert read(store, 0, 10) == DATA[:10]
        server.kill()

        def restart_once_it_is_missed() -> None:
            until(lambda: store.traffic.total.retries)
            server.restart()

        restarting = threading.Thread(target=restart_once_it_is_missed)
        restarting.start()
        assert read(store) == DATA
        restarting.join()
    finally:
        server.stop()


@pytest.mark.parametrize("count", [1100, pytest.param(2500, marks=pytest.mark.slow)])
def test_more_objects_than_a_page_are_listed_and_deleted(bucket: Bucket, count: int) -> None:
    store = open_store(f"{bucket.uri}/deep", Storage(bucket.storage_options, Transfer(requests=32)))
    paths = [f"a/{i % 7}/{i:04d}" for i in range(count)]
    lanes = [
        threading.Thread(target=lambda k=k: [store.write(p, b"1") for p in paths[k::8]]) for k in range(8)
    ]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    assert [info.path for info in store.list()] == sorted(paths)
    assert [info.path for info in store.list("a/3")] == sorted(p for p in paths if p.startswith("a/3/"))
    store.delete(paths[:-1])
    assert list(bucket.objects.sizes(f"{bucket.uri}/deep")) == [paths[-1]]
