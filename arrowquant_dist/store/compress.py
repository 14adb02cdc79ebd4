"""Values as zstd frames, in memory that is kept from one to the next."""

from __future__ import annotations

import pyarrow as pa

from arrowquant_dist.arena import Arena

_FRAME_END = b"\x01\x00\x00"  # an empty last block (RFC 8878, 3.1.1.2): all that follows what was flushed


class ZstdFrames:
    """Level 1, which is Arrow's default. Not thread-safe.

    Arrow's one-shot codec makes new memory for each result, which for tens of MiB costs as much as to compress into
    it; its stream writes where it is told to, and takes the pieces of a value without joining them first.
    """

    def __init__(self) -> None:
        self._memory = Arena()

    def compress(self, *pieces: bytes | memoryview) -> memoryview:
        """One frame of all pieces; good until the next call."""
        nbytes = sum(memoryview(piece).nbytes for piece in pieces)
        self._memory.reset()
        room = self._memory.take(_bound(nbytes))
        sink = pa.FixedSizeBufferWriter(pa.py_buffer(room))
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            for piece in pieces:
                stream.write(piece)
            stream.flush()
            flushed = sink.tell()  # closing the stream closes the sink, which then does not tell
        frame = room.data[: flushed + len(_FRAME_END)]
        if frame[-len(_FRAME_END) :] != _FRAME_END:
            raise RuntimeError("pyarrow ended a zstd frame in an unknown way")
        return frame


def _bound(nbytes: int) -> int:
    """Bytes of the largest frame: what cannot be compressed, and a few for its header and for each block."""
    return nbytes + (nbytes >> 8) + (1 << 16)
