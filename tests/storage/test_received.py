"""Bodies received straight into the caller's memory: right, or an error that may pass, and nothing is written later."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiobotocore.response import AioStreamingBody
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_dist.storage.remote.faults import may_pass
from arrowquant_dist.storage.remote.received import receive_into
from arrowquant_dist.storage.traffic import Traffic
from tests.servers.http import read_request
from tests.servers.tls import contexts

DATA = np.random.default_rng(3).bytes(3_000_000)
Send = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Answers each request in its turn by one of `sends`. connections: how many clients made."""

    def __init__(self, *sends: Send) -> None:
        self._sends, self.connections = list(sends), 0
        self.gone = asyncio.Event()  # when a client has closed its connection

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await read_request(reader, writer)
                await self._sends.pop(0)(writer)
        self.gone.set()
        writer.close()


@asynccontextmanager
async def serving(
    *sends: Send, tls: tuple[ssl.SSLContext, ssl.SSLContext] | None = None, read_timeout: float | None = None
) -> AsyncIterator[tuple[Server, Callable[[], Any]]]:
    """A server, and what asks it."""
    server = Server(*sends)
    listening = await asyncio.start_server(server.accept, "127.0.0.1", 0, ssl=tls and tls[0])
    port = listening.sockets[0].getsockname()[1]
    connector = aiohttp.TCPConnector(ssl=tls[1] if tls else True, limit=1)
    timeout = aiohttp.ClientTimeout(total=None, sock_read=read_timeout)
    async with listening, aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield server, lambda: session.get(f"{'https' if tls else 'http'}://127.0.0.1:{port}/")
        await session.close()


def body_of(response: aiohttp.ClientResponse) -> Any:
    return AioStreamingBody(response, response.headers.get("Content-Length"))


def send(*pieces: bytes, nbytes: int | None = None) -> Send:
    """One answer; each piece on its own way."""

    async def write(writer: asyncio.StreamWriter) -> None:
        length = sum(map(len, pieces)) if nbytes is None else nbytes
        first, *others = pieces
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length + first)
        for piece in others:
            await writer.drain()
            await asyncio.sleep(0)
            writer.write(piece)
        await writer.drain()

    return write


async def received(ask: Callable[[], Any], nbytes: int, traffic: Traffic | None = None) -> tuple[int, bytes]:
    """How much came straight, and all of it, the rest read as usual."""
    view = memoryview(bytearray(nbytes))
    async with ask() as response:
        body = body_of(response)
        straight = done = await receive_into(body, view, traffic or Traffic())
        while done < nbytes and (chunk := await body.read(1 << 16)):
            view[done : done + len(chunk)] = chunk
            done += len(chunk)
    return straight, bytes(view[:done])


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_bodies_are_right_and_their_connection_is_used_again(tmp_path: Path, scheme: str) -> None:
    tls = contexts(tmp_path) if scheme == "https" else None
    sizes = [len(DATA), 1, 70_000, len(DATA)]

    async def run() -> None:
        async with serving(*(send(b"", DATA[:nbytes]) for nbytes in sizes), tls=tls) as (server, ask):
            for nbytes in sizes:
                straight, data = await received(ask, nbytes)
                assert data == DATA[:nbytes]
                assert straight == nbytes or nbytes < len(DATA)
            assert server.connections == 1

    asyncio.run(run())


@settings(max_examples=30)
@given(cuts=st.lists(st.integers(0, 400_000), max_size=6), before=st.integers(0, 2))
def test_however_a_body_comes_it_is_right(cuts: list[int], before: int) -> None:
    ends = [0, *sorted(cuts), 400_000]
    pieces = [DATA[start:stop] for start, stop in pairwise(ends)]

    async def run() -> None:
        async with serving(*[send(*pieces)] * (before + 1)) as (server, ask):
            for _ in range(before + 1):
                assert (await received(ask, 400_000))[1] == DATA[:400_000]
            assert server.connections == 1

    asyncio.run(run())


def cut(nbytes: int, end: Callable[[asyncio.StreamWriter], None]) -> Send:
    async def write(writer: asyncio.StreamWriter) -> None:
        await send(DATA[:nbytes], nbytes=len(DATA))(writer)
        end(writer)

    return write


@pytest.mark.parametrize("nbytes", [0, 10, 2_000_000])
@pytest.mark.parametrize(
    "end", [lambda writer: writer.close(), lambda writer: writer.transport.abort()], ids=["closed", "reset"]
)
def test_a_connection_that_ends_in_a_body_is_an_error_that_may_pass(
    nbytes: int, end: Callable[[asyncio.StreamWriter], None]
) -> None:
    async def run() -> None:
        traffic = Traffic()
        async with serving(cut(nbytes, end), send(DATA)) as (server, ask):
            with pytest.raises((aiohttp.ClientError, OSError)) as caught:
                await received(ask, len(DATA), traffic)
            assert traffic.total.read_nbytes <= nbytes
            assert may_pass(caught.value)
            assert (await received(ask, len(DATA)))[1] == DATA
            assert server.connections == 2

    asyncio.run(run())


def test_a_body_that_stops_coming_is_given_up_after_the_clients_time_out() -> None:
    stopped = cut(2_000_000, lambda _writer: None)

    async def run() -> None:
        traffic = Traffic()
        async with serving(stopped, send(DATA), read_timeout=0.3) as (server, ask):
            with pytest.raises(TimeoutError) as caught:
                await received(ask, len(DATA), traffic)
            assert traffic.total.read_nbytes == 2_000_000
            assert may_pass(caught.value)
            assert (await received(ask, len(DATA)))[1] == DATA
            assert server.connections == 2

    asyncio.run(run())


def test_nothing_is_written_after_the_reader_has_been_cancelled() -> None:
    async def run() -> None:
        half, rest = asyncio.Event(), asyncio.Event()

        async def write(writer: asyncio.StreamWriter) -> None:
            await send(DATA[:2_000_000], nbytes=len(DATA))(writer)
            half.set()
            await rest.wait()
            writer.write(DATA[2_000_000:])

        async with serving(write) as (server, ask):
            view = memoryview(bytearray(len(DATA)))

            async def read() -> None:
                async with ask() as response:
                    await receive_into(body_of(response), view, Traffic())

            reading = asyncio.create_task(read())
            await half.wait()
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            view[:] = bytes(len(DATA))
            rest.set()
            await server.gone.wait()
            assert not any(view)

    asyncio.run(run())


def test_bytes_behind_a_body_are_never_part_of_another() -> None:
    async def run() -> None:
        async with serving(send(b"", DATA + b"junk", nbytes=len(DATA)), *[send(DATA)] * 3) as (_, ask):
            assert (await received(ask, len(DATA)))[1] == DATA
            for _ in range(2):
                with suppress(aiohttp.ClientError):
                    assert (await received(ask, len(DATA)))[1] == DATA

    asyncio.run(run())


def test_a_body_in_chunks_is_left_to_its_own_read() -> None:
    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n1234\r\n0\r\n\r\n")

    async def run() -> None:
        async with serving(write) as (_, ask):
            assert await received(ask, 4) == (0, b"1234")

    asyncio.run(run())
