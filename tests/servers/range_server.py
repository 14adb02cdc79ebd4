"""As much of S3 as reading objects by ranges needs, in this process, with answers to range requests that a test
chooses. Nothing is signed or checked, and it never waits for anything but the test."""

from __future__ import annotations

import hashlib
import re
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote

BUCKET = "bucket"
_DRIP_NBYTES = 512


@dataclass(frozen=True)
class Asked:
    """A request for a range [start, stop) of an object, and the content. number: its number among range requests, from
    0."""

    number: int
    path: str
    start: int
    stop: int
    content: bytes

    @property
    def part(self) -> bytes:
        return self.content[self.start : self.stop]


Answer = Callable[["_Handler", Asked], None]


class RangeServer:
    """The server. Use it as a context manager.

    answer: chooses the way in which a range request is answered, by default `right`. asked: the range requests, in
    their order. others: paths of all other requests. let_go: ends the answers that `stalled` and `silent` hold, as
    leaving the block does.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.asked: list[Asked] = []
        self.others: list[str] = []
        self.answer: Callable[[Asked], Answer] = lambda _: right
        self.let_go = threading.Event()
        self.stalls = threading.Semaphore(0)  # released once for each answer that has stalled
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.ours = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self.uri = f"s3://{BUCKET}"
        self.options: dict[str, Any] = {
            "anon": True,
            "client_kwargs": {"endpoint_url": f"http://127.0.0.1:{self._server.server_address[1]}"},
        }

    def put(self, folder: Path) -> str:
        """Serves all files below `folder`, and returns their URI."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.objects[f"{folder.name}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()
        return f"{self.uri}/{folder.name}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.let_go.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def ours(self) -> RangeServer:
        ours: RangeServer = self.server.ours  # type: ignore[attr-defined]
        return ours

    def do_HEAD(self) -> None:
        self._other(with_body=False)

    def do_GET(self) -> None:
        content, path = self.ours.objects.get(self.path_of_object), self.path_of_object
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if content is None or found is None:
            self._other(with_body=True)
            return
        with self.ours.lock:
            start, stop = int(found[1]), min(int(found[2]) + 1, len(content))
            asked = Asked(len(self.ours.asked), path, start, stop, content)
            self.ours.asked.append(asked)
        if start >= len(content):
            refuse(self, 416, "InvalidRange")
            return
        with suppress(ConnectionError):  # the client gave up
            self.ours.answer(asked)(self, asked)

    @property
    def path_of_object(self) -> str:
        return unquote(self.path.partition("?")[0]).removeprefix(f"/{BUCKET}/")

    def _other(self, *, with_body: bool) -> None:
        path = self.path_of_object
        with self.ours.lock:
            self.ours.others.append(path)
        content = self.ours.objects.get(path)
        if content is None:
            refuse(self, 404, "NoSuchKey", with_body=with_body)
            return
        self.head(200, len(content), content)
        if with_body:
            self.wfile.write(content)

    def head(self, status: int, nbytes: int, content: bytes, range_: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(nbytes))
        self.send_header("ETag", f'"{hashlib.md5(content).hexdigest()}"')  # noqa: S324 - no secret, as S3 does
        self.send_header("Last-Modified", "Sat, 28 Nov 2026 12:00:00 GMT")
        if range_ is not None:
            self.send_header("Content-Range", f"bytes {range_}/{len(content)}")
        self.end_headers()

    def partial(self, asked: Asked, nbytes: int | None = None, content: bytes | None = None) -> None:
        """Sends the head of a correct answer, for an object with `content`."""
        nbytes = len(asked.part) if nbytes is None else nbytes
        said = f"{asked.start}-{asked.stop - 1}"
        self.head(206, nbytes, asked.content if content is None else content, said)

    def log_message(self, *_: object) -> None:
        pass


def refuse(handler: _Handler, status: int, code: str, *, with_body: bool = True) -> None:
    body = f"<Error><Code>{code}</Code><Message>by the test</Message></Error>".encode() if with_body else b""
    handler.send_response(status)
    handler.send_header("Content-Type", "application/xml")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def right(handler: _Handler, asked: Asked) -> None:
    handler.partial(asked)
    handler.wfile.write(asked.part)


def dripping(handler: _Handler, asked: Asked) -> None:
    """Answers correctly, a little at a time."""
    handler.partial(asked)
    for start in range(0, len(asked.part), _DRIP_NBYTES):
        handler.wfile.write(asked.part[start : start + _DRIP_NBYTES])
        handler.wfile.flush()


def stalled(handler: _Handler, asked: Asked) -> None:
    """Sends half of the range, and then nothing."""
    handler.partial(asked)
    handler.wfile.write(asked.part[: len(asked.part) // 2])
    handler.wfile.flush()
    handler.ours.stalls.release()
    handler.ours.let_go.wait()
    handler.close_connection = True


def silent(handler: _Handler, asked: Asked) -> None:
    """Sends nothing, not even a head."""
    handler.ours.stalls.release()
    handler.ours.let_go.wait()
    handler.close_connection = True


def reset(handler: _Handler, asked: Asked) -> None:
    """Sends half of the range, and then RST."""
    handler.partial(asked)
    handler.wfile.write(asked.part[: len(asked.part) // 2])
    handler.wfile.flush()
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def cut(handler: _Handler, asked: Asked) -> None:
    """Sends half of the range with the full Content-Length, and then closes the connection."""
    handler.partial(asked)
    handler.wfile.write(asked.part[: len(asked.part) // 2])
    handler.close_connection = True


def short(handler: _Handler, asked: Asked) -> None:
    """Sends half of the range, with a Content-Length of that but a Content-Range of the whole."""
    half = asked.part[: len(asked.part) // 2]
    handler.partial(asked, len(half))
    handler.wfile.write(half)


def less(handler: _Handler, asked: Asked) -> None:
    """Sends the first half of the range, and the whole head says so."""
    half = asked.part[: len(asked.part) // 2]
    handler.head(206, len(half), asked.content, f"{asked.start}-{asked.start + len(half) - 1}")
    handler.wfile.write(half)


def shifted(handler: _Handler, asked: Asked) -> None:
    """Sends the bytes one position further on, and the head says so."""
    part = asked.content[asked.start + 1 : asked.stop + 1]
    handler.head(206, len(part), asked.content, f"{asked.start + 1}-{asked.start + len(part)}")
    handler.wfile.write(part)


def entire(handler: _Handler, asked: Asked) -> None:
    """Answers 200 with the whole object, whatever the range."""
    handler.head(200, len(asked.content), asked.content)
    handler.wfile.write(asked.content)


def flipped(handler: _Handler, asked: Asked) -> None:
    """Flips one bit of the byte in the middle."""
    part = bytearray(asked.part)
    part[len(part) // 2] ^= 8
    handler.partial(asked)
    handler.wfile.write(part)


def replaced(handler: _Handler, asked: Asked) -> None:
    """Answers with the bytes of another object of the same size."""
    handler.partial(asked, content=bytes(len(asked.content)))
    handler.wfile.write(bytes(len(asked.part)))


def slow_down(handler: _Handler, asked: Asked) -> None:
    refuse(handler, 503, "SlowDown")


def denied(handler: _Handler, asked: Asked) -> None:
    refuse(handler, 403, "AccessDenied")


def gone(handler: _Handler, asked: Asked) -> None:
    refuse(handler, 404, "NoSuchKey")
