"""Writes to a real S3 server: whole or not at all, whatever happens to requests and answers."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import numpy as np
import pytest

from arrowquant_dist.config import Storage
from arrowquant_dist.errors import StorageError
from arrowquant_dist.storage.base import Store
from arrowquant_dist.storage.open import open_store
from tests.servers.faults import Fault, Kind
from tests.storage.s3_faults import IMPATIENT, PIECES, Flaky
from tests.waiting import interrupted, until

PART = PIECES.upload_bytes
DATA = np.random.default_rng(6).bytes(2 * PART + 1_000_000)


def upload(store: Store, data: bytes = DATA, step: int = 1_300_000) -> None:
    with store.open_writer("w") as writer:
        for start in range(0, len(data), step):
            writer.write(data[start : start + step])


@pytest.mark.parametrize(
    ("nbytes", "methods"),
    [
        (0, ["PUT"]),
        (1000, ["PUT"]),
        (PART, ["POST", "PUT", "POST"]),
        (PART + 1, ["POST", "PUT", "PUT", "POST"]),
    ],
)
def test_small_objects_take_one_request_and_large_ones_go_in_parts(
    flaky: Flaky, nbytes: int, methods: list[str]
) -> None:
    seen: list[str] = []
    flaky.proxy.on_request = lambda method, _path: seen.append(method)
    store = flaky.store()
    upload(store, DATA[:nbytes])
    assert flaky.get("w") == DATA[:nbytes]
    assert seen == methods
    assert store.traffic.total.written_nbytes == nbytes


def test_parts_go_up_while_the_caller_goes_on(flaky: Flaky) -> None:
    sent = threading.Event()
    flaky.proxy.on_request = lambda _method, path: sent.set() if "partNumber=1" in path else None
    writer = flaky.store().open_writer("w")
    writer.write(DATA[:PART])
    sent.wait()
    assert flaky.sizes() == {}
    writer.write(DATA[PART:])
    writer.close()
    assert flaky.get("w") == DATA


@pytest.mark.parametrize("parts_in_flight", [1, 2, 5])
def test_parts_of_any_number_in_flight_and_a_last_one_of_any_length_make_the_object(
    flaky: Flaky, parts_in_flight: int
) -> None:
    """Memory of parts that were sent is used again."""
    data = np.random.default_rng(7).bytes(6 * PART + 12_345)
    for nbytes in (len(data), 6 * PART, 5 * PART + 1):
        upload(flaky.store(replace(PIECES, parts_in_flight=parts_in_flight)), data[:nbytes])
        assert flaky.get("w") == data[:nbytes]


@pytest.mark.parametrize("parts_in_flight", [1, 2, 5])
def test_so_many_parts_are_sent_at_a_time_and_no_more(flaky: Flaky, parts_in_flight: int) -> None:
    flaky.fail(Fault(Kind.STALLED_HEADERS, "PUT"))
    settings = replace(PIECES, parts_in_flight=parts_in_flight, request_timeout=3600.0)
    writer = flaky.store(settings).open_writer("w")
    for _ in range(parts_in_flight):
        writer.write(DATA[:PART])  # the next one would wait for the first
    until(lambda: flaky.proxy.at_once == parts_in_flight)
    writer.abort()
    assert flaky.proxy.most_at_once == parts_in_flight
    assert flaky.uploads() == []


PASSING = {
    "503": (Fault(Kind.SLOW_DOWN, "PUT|POST", limit=4),),
    "500": (Fault(Kind.INTERNAL_ERROR, "PUT|POST", limit=4),),
    "reset": (Fault(Kind.RESET_REQUEST, "PUT|POST", limit=4),),
    "no answer": (Fault(Kind.STALLED_HEADERS, "POST", nth=1), Fault(Kind.STALLED_HEADERS, "POST", nth=3)),
    "part applied, answer lost": (Fault(Kind.LOST_RESPONSE, "PUT", limit=3),),
    "upload begun, answer lost": (Fault(Kind.LOST_RESPONSE, "POST", nth=1),),
    "upload completed, answer lost": (Fault(Kind.LOST_RESPONSE, "POST", nth=2),),
}


@pytest.mark.parametrize("name", PASSING)
def test_an_upload_is_whole_whatever_requests_fail(flaky: Flaky, name: str) -> None:
    flaky.fail(*PASSING[name])
    store = flaky.store(IMPATIENT)
    upload(store)
    assert flaky.get("w") == DATA
    assert flaky.proxy.injected
    store.abandon_uploads()  # of one whose beginning was not heard of
    assert flaky.uploads() == []


def test_a_small_object_is_whole_whatever_requests_fail(flaky: Flaky) -> None:
    for kind in (Kind.SLOW_DOWN, Kind.RESET_REQUEST, Kind.STALLED_HEADERS, Kind.LOST_RESPONSE):
        flaky.fail(Fault(kind, "PUT", nth=1))
        upload(flaky.store(IMPATIENT), kind.value.encode())
        assert flaky.get("w") == kind.value.encode()
        assert len(flaky.proxy.injected) == 1


def test_a_completion_that_finds_its_upload_gone_looks_for_the_object(flaky: Flaky) -> None:
    """SeaweedFS answers a second completion like the first; S3 itself says NoSuchUpload, as here by an abort."""
    store = flaky.store()
    completions = 0

    def abort_after_completion(method: str, path: str) -> None:
        nonlocal completions
        if method == "POST" and "uploadId" in path:
            completions += 1

    flaky.proxy.on_request = abort_after_completion
    flaky.fail(Fault(Kind.LOST_RESPONSE, "POST", path="uploadId", nth=1))
    upload(store)
    assert completions == 2
    assert flaky.get("w") == DATA


@pytest.mark.parametrize("parts", [0, 1, 2])
def test_an_aborted_upload_leaves_neither_object_nor_parts(flaky: Flaky, parts: int) -> None:
    writer = flaky.store().open_writer("w")
    writer.write(DATA[: parts * PART + 10])
    writer.abort()
    writer.close()
    assert flaky.sizes() == {}
    assert flaky.uploads() == []


def test_a_dropped_writer_leaves_neither_object_nor_parts(flaky: Flaky) -> None:
    writer = flaky.store().open_writer("w")
    writer.write(DATA[: PART + 10])
    del writer
    assert flaky.uploads() == []
    assert flaky.sizes() == {}


def test_an_upload_that_fails_for_good_leaves_neither_object_nor_parts(flaky: Flaky) -> None:
    flaky.fail(Fault(Kind.INTERNAL_ERROR, "PUT"))
    with pytest.raises(StorageError, match="InternalError") as caught:
        upload(flaky.store(replace(PIECES, retries=2)))
    assert caught.value.uri == f"{flaky.bucket.uri}/w"
    assert flaky.uploads() == []
    assert flaky.sizes() == {}


def test_uploads_of_writers_that_died_are_found_and_given_up(flaky: Flaky) -> None:
    name = flaky.bucket.uri.removeprefix("s3://")
    for key in ("t/weights/a", "t/weights/b", "other/c"):
        flaky.bucket.objects.client.create_multipart_upload(Bucket=name, Key=key)
    open_store(f"{flaky.bucket.uri}/t", Storage(flaky.options)).abandon_uploads("weights")
    assert flaky.uploads() == ["other/c"]


def test_a_create_whose_answer_was_lost_knows_its_own_object(flaky: Flaky) -> None:
    flaky.fail(Fault(Kind.LOST_RESPONSE, "PUT", nth=1))
    assert flaky.store().create("c", b"mine")
    assert flaky.proxy.requests > 1
    assert flaky.get("c") == b"mine"


def test_a_create_whose_answer_was_lost_knows_anothers_object(flaky: Flaky) -> None:
    flaky.put("c", b"another's")
    flaky.fail(Fault(Kind.RESET_REQUEST, "PUT", nth=1))
    assert not flaky.store().create("c", b"mine")
    assert flaky.get("c") == b"another's"


@pytest.mark.parametrize(
    "kind", [Kind.SLOW_DOWN, Kind.RESET_REQUEST, Kind.STALLED_HEADERS, Kind.LOST_RESPONSE]
)
def test_racing_creates_have_one_winner_under_faults(flaky: Flaky, kind: Kind) -> None:
    flaky.fail(Fault(kind, "PUT", probability=0.4, limit=6))
    contents = [json.dumps({"attempt": i}).encode() for i in range(8)]
    won: list[bytes] = []

    def race(data: bytes) -> None:
        if flaky.store(IMPATIENT).create("c", data):
            won.append(data)

    threads = [threading.Thread(target=race, args=(data,)) for data in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [flaky.get("c")]


def test_what_is_interrupted_ends_at_once(flaky: Flaky) -> None:
    """Ctrl-C reaches a thread that waits for requests; they end with it, not after their time-outs: those are hours."""
    store = flaky.store(replace(PIECES, request_timeout=3600.0))
    flaky.put("x", b"1")
    flaky.fail(Fault(Kind.STALLED_HEADERS))
    with interrupted(lambda: flaky.proxy.requests), pytest.raises(KeyboardInterrupt):
        store.read("x")
    until(lambda: not flaky.proxy.at_once)
    assert flaky.proxy.requests == 1
