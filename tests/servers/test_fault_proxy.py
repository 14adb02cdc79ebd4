"""Each fault does what its name says, hits the requests that it is meant for, and is counted."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.servers.fault_proxy import FaultProxy
from tests.servers.faults import Fault, Kind
from tests.servers.fixtures import Bucket
from tests.servers.objects import Objects
from tests.servers.seaweedfs import SeaweedFS

BODY = bytes(range(256)) * 64


class _Handler(BaseHTTPRequestHandler):
    """GET gives BODY, PUT keeps its body; PUT /refused is refused."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._answer(200, BODY)

    def do_PUT(self) -> None:
        self.server.kept.append(self.rfile.read(int(self.headers["Content-Length"])))  # type: ignore[attr-defined]
        self._answer(412 if self.path == "/refused" else 200, b"")

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Host", self.headers["Host"])
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.kept: list[bytes] = []


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class _Client:
    """A request a call, each on its own connection unless `connection` is kept."""

    def __init__(self, proxy: FaultProxy, seconds: float | None = None) -> None:
        self._connection = http.client.HTTPConnection(
            proxy.endpoint_url.removeprefix("http://"), timeout=seconds
        )

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        try:
            self._connection.request(method, path, body)
            answer = self._connection.getresponse()
            return answer.status, answer.read()
        except Exception:
            self._connection.close()
            raise

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def proxy(server: _Server) -> Iterator[FaultProxy]:
    with FaultProxy(server.server_address[1]) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[_Client]:
    client = _Client(proxy)
    yield client
    client.close()


def kinds(proxy: FaultProxy) -> list[Kind]:
    return [hit.kind for hit in proxy.injected]


def test_without_faults_everything_passes_on_one_connection(
    proxy: FaultProxy, client: _Client, server: _Server
) -> None:
    assert [client.ask("GET", "/a") for _ in range(3)] == [(200, BODY)] * 3
    assert client.ask("PUT", "/b", b"123") == (200, b"")
    assert server.kept == [b"123"]
    assert proxy.requests == 4
    assert not proxy.injected


@pytest.mark.parametrize(("kind", "status"), [(Kind.SLOW_DOWN, 503), (Kind.INTERNAL_ERROR, 500)])
def test_a_refused_request_never_reaches_the_server(
    proxy: FaultProxy, client: _Client, server: _Server, kind: Kind, status: int
) -> None:
    proxy.rewrite(Fault(kind, limit=1))
    code, body = client.ask("PUT", "/a", b"123")
    assert code == status
    assert kind.value.split()[1].encode() in body
    assert server.kept == []
    assert client.ask("PUT", "/a", b"123") == (200, b"")
    assert kinds(proxy) == [kind]


def test_a_reset_request_never_reaches_the_server(
    proxy: FaultProxy, client: _Client, server: _Server
) -> None:
    proxy.rewrite(Fault(Kind.RESET_REQUEST))
    with pytest.raises(ConnectionError):
        client.ask("PUT", "/a", b"123")
    assert server.kept == []


def test_a_body_is_reset_in_the_middle(proxy: FaultProxy, client: _Client) -> None:
    proxy.rewrite(Fault(Kind.RESET_BODY))
    with pytest.raises(ConnectionResetError):
        client.ask("GET", "/a")


def test_a_truncated_body_comes_under_the_full_length(proxy: FaultProxy, client: _Client) -> None:
    proxy.rewrite(Fault(Kind.TRUNCATED_BODY))
    with pytest.raises(http.client.IncompleteRead) as raised:
        client.ask("GET", "/a")
    assert raised.value.partial == BODY[: len(BODY) // 2]


def test_one_bit_of_one_byte_is_wrong(proxy: FaultProxy, client: _Client) -> None:
    proxy.rewrite(Fault(Kind.FLIPPED_BYTE, limit=1))
    status, body = client.ask("GET", "/a")
    wrong = [a ^ b for a, b in zip(body, BODY, strict=True) if a != b]
    assert status == 200
    assert len(wrong) == 1
    assert wrong[0].bit_count() == 1
    assert client.ask("GET", "/a") == (200, BODY)


def test_one_bit_of_what_is_sent_is_wrong(proxy: FaultProxy, client: _Client, server: _Server) -> None:
    proxy.rewrite(Fault(Kind.FLIPPED_UPLOAD, "PUT"))
    assert client.ask("PUT", "/a", BODY) == (200, b"")
    wrong = [a ^ b for a, b in zip(server.kept[0], BODY, strict=True) if a != b]
    assert [byte.bit_count() for byte in wrong] == [1]
    assert kinds(proxy) == [Kind.FLIPPED_UPLOAD]


@pytest.mark.parametrize("kind", [Kind.STALLED_HEADERS, Kind.STALLED_BODY])
def test_a_stalled_answer_never_ends(proxy: FaultProxy, client: _Client, kind: Kind) -> None:
    proxy.rewrite(Fault(kind, limit=1))
    impatient = _Client(proxy, seconds=0.3)
    with pytest.raises(TimeoutError):
        impatient.ask("GET", "/a")
    assert client.ask("GET", "/a") == (200, BODY)


def test_a_request_whose_answer_is_lost_was_applied(
    proxy: FaultProxy, client: _Client, server: _Server
) -> None:
    proxy.rewrite(Fault(Kind.LOST_RESPONSE, method="PUT"))
    with pytest.raises(ConnectionError):
        client.ask("PUT", "/a", b"123")
    assert server.kept == [b"123"]
    assert client.ask("PUT", "/refused", b"4") == (412, b"")  # not applied, so there is nothing to lose
    assert kinds(proxy) == [Kind.LOST_RESPONSE]


def test_a_trickle_is_complete(proxy: FaultProxy, client: _Client) -> None:
    proxy.rewrite(Fault(Kind.TRICKLE))
    assert client.ask("GET", "/a") == (200, BODY)
    assert kinds(proxy) == [Kind.TRICKLE]


def test_rules_choose_by_method_path_and_number(proxy: FaultProxy, client: _Client) -> None:
    proxy.rewrite(
        Fault(Kind.SLOW_DOWN, "PUT", r"^/x"),
        Fault(Kind.INTERNAL_ERROR, path=r"\?partNumber=", nth=2),
        Fault(Kind.SLOW_DOWN, header="^if-none-match: \\*"),
    )
    asked = [("PUT", "/x"), ("GET", "/x"), ("PUT", "/y"), *[("PUT", "/y?partNumber=1")] * 3]
    assert [client.ask(m, p, b"")[0] for m, p in asked] == [503, 200, 200, 200, 500, 200]


def test_the_same_seed_hits_the_same_requests(proxy: FaultProxy, client: _Client) -> None:
    def hits(seed: int) -> list[int]:
        proxy.rewrite(Fault(Kind.SLOW_DOWN, probability=0.1), seed=seed)
        return [client.ask("GET", "/a")[0] for _ in range(100)]

    first = hits(1)
    assert first == hits(1) != hits(2)
    assert 3 <= first.count(503) <= 20


def test_signed_requests_pass_and_an_upload_completes_whose_answer_was_lost(
    seaweedfs: SeaweedFS, bucket: Bucket
) -> None:
    name = bucket.uri.removeprefix("s3://")
    with FaultProxy(seaweedfs.port, Fault(Kind.LOST_RESPONSE, "POST", "uploadId=", limit=1)) as proxy:
        objects = Objects(proxy.endpoint_url, seaweedfs.key, seaweedfs.secret, attempts=1)
        upload = objects.client.create_multipart_upload(Bucket=name, Key="a")["UploadId"]
        part = objects.client.upload_part(Bucket=name, Key="a", UploadId=upload, PartNumber=1, Body=BODY)
        with pytest.raises(Exception, match=r"closed|reset|aborted"):
            objects.client.complete_multipart_upload(
                Bucket=name,
                Key="a",
                UploadId=upload,
                MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]},
            )
        assert kinds(proxy) == [Kind.LOST_RESPONSE]
    assert bucket.objects.get(f"{bucket.uri}/a") == BODY
    assert bucket.objects.uploads(bucket.uri) == []
