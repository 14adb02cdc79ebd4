"""A checkpoint on a plain web server: fsspec's http, with the same splitting and repeating of requests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pytest

from arrowquant_dist.config import Storage, Transfer
from arrowquant_dist.errors import NotFound, StorageError
from arrowquant_dist.storage.base import ByteRange, Store
from arrowquant_dist.storage.open import open_store

DATA = np.random.default_rng(7).bytes(300_000)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    answers_ranges: ClassVar[bool] = True
    failures: ClassVar[list[int]] = []

    def do_HEAD(self) -> None:
        self._answer(200, b"", len(DATA))

    def do_GET(self) -> None:
        if self.failures:
            self._answer(self.failures.pop(), b"no")
            return
        if self.path != "/x":
            self._answer(404, b"no")
            return
        wanted = self.headers.get("Range")
        if wanted is None or not self.answers_ranges:
            self._answer(200, DATA)
            return
        first, last = map(int, wanted.removeprefix("bytes=").split("-"))
        self._answer(206, DATA[first : last + 1])

    def _answer(self, status: int, body: bytes, nbytes: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if nbytes is None else nbytes))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, *_: object) -> None:
        return


@pytest.fixture
def store() -> Iterator[Store]:
    _Handler.answers_ranges, _Handler.failures = True, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    transfer = Transfer(range_bytes=64 << 10, retries=4, backoff=0.01)
    yield open_store(f"http://127.0.0.1:{server.server_port}", Storage(transfer=transfer))
    server.shutdown()
    thread.join()
    server.server_close()


def test_ranges_come_split_and_are_repeated(store: Store) -> None:
    _Handler.failures[:] = [503, 500, 429]
    assert store.read_range("x", ByteRange(5, 290_000)).tobytes() == DATA[5:290_000]
    assert store.traffic.total.retries == 3
    assert store.size("x") == len(DATA)


def test_what_is_not_there_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound):
        store.read_range("y", ByteRange(0, 10))
    assert store.traffic.total.retries == 0


def test_a_server_that_ignores_ranges_is_refused(store: Store) -> None:
    _Handler.answers_ranges = False
    with pytest.raises(StorageError, match="does not serve byte ranges"):
        store.read_range("x", ByteRange(0, 10))
