"""An HTTP/1.1 proxy on 127.0.0.1 that fails according to a script. It knows nothing of S3 or of the code under test."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from asyncio import IncompleteReadError, StreamReader, StreamWriter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

from tests.servers.faults import Fault, Injected, Kind, Script
from tests.servers.http import Message, read_answer, read_request

T = TypeVar("T")
TRICKLE_NBYTES, TRICKLE_SECONDS = 4096, 0.05
_LIMIT = 1 << 18
_REFUSALS = {
    Kind.SLOW_DOWN: (503, "Slow Down", "SlowDown"),
    Kind.INTERNAL_ERROR: (500, "Internal Server Error", "InternalError"),
}
_NOT_APPLIED = {*_REFUSALS, Kind.RESET_REQUEST, Kind.STALLED_HEADERS}


class FaultProxy:
    """A proxy in front of 127.0.0.1:port, in a thread of its own. It passes Host on, so signatures stay valid.

    Use it as a context manager. endpoint_url: URL for clients. injected: the faults that happened. requests: number of
    requests seen. at_once: number of requests that are not answered yet. most_at_once: largest value of at_once.
    on_request: called with (method, path) of each request, from the proxy's thread.
    """

    def __init__(self, port: int, *faults: Fault, seed: int = 0) -> None:
        self._upstream = port
        self._script = Script(faults, seed)
        self.requests = self.most_at_once = self.at_once = 0
        self.on_request: Callable[[str, str], None] = lambda _method, _path: None
        self._connections: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)

    @property
    def injected(self) -> list[Injected]:
        return self._script.injected

    def rewrite(self, *faults: Fault, seed: int = 0) -> None:
        """Follows another script from now on; `injected`, `requests` and `most_at_once` start again."""
        self._script, self.requests, self.most_at_once = Script(faults, seed), 0, 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._wait(asyncio.start_server(self._accept, "127.0.0.1", 0, limit=_LIMIT))
        self.endpoint_url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wait(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _stop(self) -> None:
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        upstream = _Upstream(self._upstream)
        try:
            # Ended by the client, by the server, or by a reset that this proxy made.
            with suppress(ConnectionError, IncompleteReadError, asyncio.CancelledError):
                while await self._serve(reader, writer, upstream):
                    pass
        finally:
            self._connections.discard(task)
            upstream.close()
            writer.close()

    async def _serve(self, reader: StreamReader, writer: StreamWriter, upstream: _Upstream) -> bool:
        """Handles one request and its answer. Returns whether the connection goes on."""
        request = await read_request(reader, writer)
        self.requests += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self._answer(request, reader, writer, upstream)
        finally:
            self.at_once -= 1

    async def _answer(
        self, request: Message, reader: StreamReader, writer: StreamWriter, upstream: _Upstream
    ) -> bool:
        method, path = request.start[:2]
        self.on_request(method, path)
        script = self._script
        number = script.choose(method, path, request.head.decode("latin-1"))
        kind = script.kind(number)
        if kind in _NOT_APPLIED or (kind is Kind.FLIPPED_UPLOAD and request.body):
            assert number is not None
            script.happened(number, method, path)
        if kind is Kind.RESET_REQUEST:
            return await _reset(writer)
        if kind is Kind.STALLED_HEADERS:
            return await _stall(reader)
        if kind in _REFUSALS:
            answer = _refusal(kind, method)
        else:
            if kind is Kind.FLIPPED_UPLOAD:
                request = _flipped(request, script)
            answer = await upstream.ask(request, method)
            if number is not None and kind is not Kind.FLIPPED_UPLOAD:
                if _can_spoil(script.kind(number), answer):
                    script.happened(number, method, path)
                    return await _spoil(script, number, answer, reader, writer) and not answer.closes
                script.spare(number)
        writer.write(answer.head + answer.body)
        await writer.drain()
        return not (request.closes or answer.closes)


class _Upstream:
    """A connection to the server, opened when it is needed, and again after the server closed it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[StreamReader, StreamWriter] | None = None

    async def ask(self, request: Message, method: str) -> Message:
        """The server's answer to the request. Raises ConnectionError or IncompleteReadError if the server is gone."""
        if self._streams is None or self._streams[0].at_eof() or self._streams[1].is_closing():
            self.close()
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=_LIMIT)
        reader, writer = self._streams
        writer.write(request.head + request.body)
        await writer.drain()
        answer = await read_answer(reader, method)
        if answer.closes:
            self.close()
        return answer

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def _can_spoil(kind: Kind | None, answer: Message) -> bool:
    """Whether the request succeeded and, unless the whole answer is to be lost, the answer has a body to spoil."""
    applied = answer.start[1].startswith("2")
    return applied and (kind is Kind.LOST_RESPONSE or bool(answer.body))


async def _spoil(
    script: Script, number: int, answer: Message, reader: StreamReader, writer: StreamWriter
) -> bool:
    """Sends the spoilt answer, or as much of it as the fault lets through. Returns whether the connection goes on."""
    kind = script.kind(number)
    if kind is Kind.LOST_RESPONSE:
        return await _reset(writer)
    if kind is Kind.TRICKLE:
        return await _trickle(answer, writer)
    if kind is Kind.FLIPPED_BYTE:
        answer = _flipped(answer, script)
        writer.write(answer.head + answer.body)
        await writer.drain()
        return True
    writer.write(answer.head + answer.body[: len(answer.body) // 2])
    await writer.drain()
    if kind is Kind.STALLED_BODY:
        return await _stall(reader)
    return await _reset(writer) if kind is Kind.RESET_BODY else False


def _flipped(message: Message, script: Script) -> Message:
    if not message.body:
        return message
    index, mask = script.byte_to_flip(len(message.body))
    body = bytearray(message.body)
    body[index] ^= mask
    return Message(message.head, bytes(body))


async def _trickle(answer: Message, writer: StreamWriter) -> bool:
    writer.write(answer.head)
    for start in range(0, len(answer.body), TRICKLE_NBYTES):
        writer.write(answer.body[start : start + TRICKLE_NBYTES])
        await writer.drain()
        await asyncio.sleep(TRICKLE_SECONDS)
    return True


async def _stall(reader: StreamReader) -> bool:
    """Sends nothing until the client gives up."""
    while await reader.read(_LIMIT):
        pass
    return False


async def _reset(writer: StreamWriter) -> bool:
    """Closes by RST instead of FIN, after the client had time to read what was sent."""
    await asyncio.sleep(0.01)
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False


def _refusal(kind: Kind, method: str) -> Message:
    """A refusal in the form of S3; the answer to HEAD has no body."""
    status, reason, code = _REFUSALS[kind]
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{kind.value}</Message></Error>"
    body = b"" if method == "HEAD" else text.encode()
    head = (
        f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return Message(head.encode(), body)
