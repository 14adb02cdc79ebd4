"""Receives the body of a response from its connection directly into the caller's memory.

aiohttp makes an object of each 64 to 256 KiB that arrive, and copies it three times before a caller has it. Here
aiohttp's protocol is replaced until the body is complete: data goes from the system to its place, up to 4 MiB at
once. That takes 0.7 of the CPU time. Written for aiohttp 3.12 to 3.14, using public names; any other kind of response
is left to its own `read`.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol, cast

from arrowquant_dist.storage.traffic import Traffic


class _Handler(Protocol):
    """What aiohttp's protocol of a connection has to offer."""

    read_timeout: float | None

    def start_timeout(self) -> None: ...
    def eof_received(self) -> None: ...
    def connection_lost(self, error: BaseException | None) -> None: ...


async def receive_into(body: Any, view: memoryview, traffic: Traffic) -> int:
    """Returns how many bytes of `body` are in `view` afterwards: all of them, or those that had arrived if the rest
    has to be read in the usual way.

    body: aiobotocore's, of len(view) bytes, of which nothing was read yet. traffic: counts what has arrived, also if
    an error ends it. Raises TimeoutError if nothing arrives for the client's read time-out, or aiohttp's errors. Once
    cancelled or failed, it writes nothing more.
    """
    response = _response_of(body)
    if response is None or response.content_length != len(view):
        return 0
    done = 0
    while chunk := response.content.read_nowait():
        view[done : done + len(chunk)] = chunk
        done += len(chunk)
    traffic.add(read_nbytes=done)
    if done == len(view) or not _can_step_aside(response):
        return done
    receiver = _Receiver(response, view[done:])
    try:
        await receiver.end()
    finally:
        traffic.add(read_nbytes=receiver.nbytes)
    return len(view)


def _response_of(body: Any) -> Any | None:
    """aiohttp's response; None if something else wants to see what is read, for example to compute a checksum."""
    from aiobotocore import response

    kind = getattr(response, "AioStreamingBody", None)
    return body.raw_stream if kind is not None and type(body) is kind else None


def _can_step_aside(response: Any) -> bool:
    connection = response.connection
    return (
        connection is not None
        and not response.content.is_eof()
        and hasattr(connection.protocol, "start_timeout")
        and hasattr(connection.protocol, "read_timeout")
        and hasattr(connection.transport, "set_protocol")
    )


class _Receiver(asyncio.BufferedProtocol):
    """Fills memory from a connection in place of aiohttp's protocol, which is put back when the memory is full or the
    caller is gone."""

    def __init__(self, response: Any, rest: memoryview) -> None:
        self._content, self._rest = response.content, rest
        self.nbytes = 0  # received so far
        self._transport: asyncio.Transport = response.connection.transport
        self._handler: _Handler = response.connection.protocol
        self._seconds = self._handler.read_timeout
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._heard = self._loop.time()

    async def end(self) -> None:
        self._handler.read_timeout = None
        self._handler.start_timeout()  # cancels the running one: aiohttp does not see the data that arrives
        self._transport.set_protocol(self)
        self._transport.resume_reading()
        timer = self._loop.create_task(self._watch(self._seconds)) if self._seconds else None
        try:
            await self._ended
        finally:
            self._give_back()
            if timer is not None:
                timer.cancel()

    async def _watch(self, seconds: float) -> None:
        while (left := self._heard + seconds - self._loop.time()) > 0:
            await asyncio.sleep(left)
        self._fail(TimeoutError(f"nothing arrived for {seconds:g} s"))

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the protocol's name
        return self._rest

    def buffer_updated(self, nbytes: int) -> None:
        self._heard = self._loop.time()
        self.nbytes += nbytes
        self._rest = self._rest[nbytes:]
        if self._rest:
            return
        self._give_back()
        self._content.feed_eof()  # so that the connection is reused
        if not self._ended.done():
            self._ended.set_result(None)

    def eof_received(self) -> None:
        self._handler.eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        self._handler.connection_lost(error)
        self._fail(self._content.exception() or error or ConnectionResetError("the connection was closed"))

    def pause_writing(self) -> None:
        self._protocol().pause_writing()

    def resume_writing(self) -> None:
        self._protocol().resume_writing()

    def _protocol(self) -> asyncio.Protocol:
        return cast(asyncio.Protocol, self._handler)

    def _give_back(self) -> None:
        if self._transport.get_protocol() is self:
            self._transport.set_protocol(self._protocol())

    def _fail(self, error: BaseException) -> None:
        if not self._ended.done():
            self._ended.set_exception(error)
