"""As much of HTTP/1.1 as S3 clients and servers use: messages are read whole, and written as they came."""

from __future__ import annotations

import re
from asyncio import StreamReader, StreamWriter
from dataclasses import dataclass


@dataclass(frozen=True)
class Message:
    """A request or an answer.

    head: start line and headers, each with its line end, and the empty line. body: the body as on the wire, including
    chunk sizes if it came in chunks.
    """

    head: bytes
    body: bytes

    @property
    def start(self) -> list[str]:
        """The words of the start line: [method, path, version] or [version, status, reason]."""
        return self.head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)

    @property
    def closes(self) -> bool:
        return (header(self.head, "connection") or "").lower() == "close"


def header(head: bytes, name: str) -> str | None:
    """The first value of the header of that name, in any case."""
    found = re.search(rb"\r\n%s:[ \t]*([^\r]*)" % name.encode(), head, re.IGNORECASE)
    return found[1].decode("latin-1").strip() if found else None


async def read_request(reader: StreamReader, writer: StreamWriter) -> Message:
    """Reads a whole request, and sends `100 Continue` to clients that wait for it. Raises IncompleteReadError at the
    end of the connection."""
    head = await reader.readuntil(b"\r\n\r\n")
    if (header(head, "expect") or "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
        head = re.sub(rb"\r\nexpect:[^\r]*", b"", head, flags=re.IGNORECASE)
    return Message(head, await _read_body(reader, head))


async def read_answer(reader: StreamReader, method: str) -> Message:
    head = await reader.readuntil(b"\r\n\r\n")
    while head.split(b" ", 2)[1].startswith(b"1"):
        head = await reader.readuntil(b"\r\n\r\n")
    bodiless = method == "HEAD" or head.split(b" ", 2)[1][:3] in {b"204", b"304"}
    return Message(head, b"" if bodiless else await _read_body(reader, head))


async def _read_body(reader: StreamReader, head: bytes) -> bytes:
    if "chunked" in (header(head, "transfer-encoding") or "").lower():
        return await _read_chunks(reader)
    return await reader.readexactly(int(header(head, "content-length") or 0))


async def _read_chunks(reader: StreamReader) -> bytes:
    pieces = []
    while True:
        size = await reader.readline()
        pieces.append(size)
        nbytes = int(size.split(b";")[0], 16)
        if nbytes == 0:
            break
        pieces.append(await reader.readexactly(nbytes + 2))
    while pieces[-1] != b"\r\n":  # trailers, and the empty line
        pieces.append(await reader.readline())
    return b"".join(pieces)
