"""Values as zstd frames, in memory that is kept from one to the next."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from arrowquant_dist.arena import Arena
from arrowquant_dist.kernels.zstd.frames import (
    BLOCK_NBYTES,
    Workspace,
    block_count,
    blocks_bound,
    write_blocks,
)

_LARGE_NBYTES = 1 << 18  # a code of their own would cost smaller values more time than it saves
_ONE_IN = 64  # blocks are compressed by zstd as well, to compare
_WORTH = 0.99  # zstd's size among ours that is worth its time
# magic, then: the size follows in four bytes, and the window is one block (RFC 8878, 3.1.1.1)
_FRAME_START = b"\x28\xb5\x2f\xfd\x80\x38"
_FRAME_END = b"\x01\x00\x00"  # an empty last block


class ZstdFrames:
    """Not thread-safe.

    Large values are Huffman-coded by the package's own kernel, at 1.7 times the rate of zstd's level 1 and to the
    same size within a hundredth, since codes of weights hold no repetitions. Where a sample says that zstd makes them
    smaller (zeros, copies, bytes of which few occur), and for small values, it is zstd, at level 1.

    Arrow's one-shot codec makes new memory for each result, which for tens of MiB costs as much as to compress into
    it; its stream writes where it is told to, and takes the pieces of a value without joining them first.
    """

    def __init__(self) -> None:
        self._memory = Arena()
        self._workspace = Workspace()
        self._codec = pa.Codec("zstd")

    def load(self) -> None:
        """Makes the kernel ready, which takes seconds where it was never compiled: no value has to wait for it then."""
        self._coded(b"", memoryview(bytes(_LARGE_NBYTES)))

    def compress(self, prefix: bytes, value: memoryview) -> memoryview:
        """One frame of `prefix` and `value`, less than 4 GiB; good until the next call."""
        if value.nbytes < _LARGE_NBYTES:
            return memoryview(self._codec.compress(prefix + value))
        return self._coded(prefix, value) or self._streamed(prefix, value)

    def _coded(self, prefix: bytes, value: memoryview) -> memoryview | None:
        """None where zstd does better."""
        values = np.frombuffer(value.toreadonly(), np.uint8)  # one type of array: the kernel is compiled once
        nbytes = len(prefix) + values.size
        raw = (len(prefix) << 3).to_bytes(3, "little")  # the header of a block that is stored as it is
        start = _FRAME_START + nbytes.to_bytes(4, "little") + raw + prefix
        frame = self._room(len(start) + blocks_bound(values.size) + len(_FRAME_END))
        sizes = np.empty(block_count(values.size), np.int64)
        frame[: len(start)] = np.frombuffer(start, np.uint8)
        end = write_blocks(values, frame, len(start), sizes, self._workspace)
        if self._zstd_is_smaller(values, sizes):
            return None
        stop = end + len(_FRAME_END)
        frame[end:stop] = np.frombuffer(_FRAME_END, np.uint8)
        return frame[:stop].data

    def _zstd_is_smaller(self, values: np.ndarray, sizes: np.ndarray) -> bool:
        count = max(sizes.size // _ONE_IN, 1)
        chosen = [(2 * i + 1) * sizes.size // (2 * count) for i in range(count)]
        starts = [block * BLOCK_NBYTES for block in chosen]
        by_zstd = sum(self._codec.compress(values[start : start + BLOCK_NBYTES]).size for start in starts)
        return bool(by_zstd < _WORTH * sizes[chosen].sum())

    def _streamed(self, prefix: bytes, value: memoryview) -> memoryview:
        nbytes = len(prefix) + value.nbytes
        room = self._room(nbytes + (nbytes >> 8) + (1 << 16))  # what cannot be compressed, and headers
        sink = pa.FixedSizeBufferWriter(pa.py_buffer(room))
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(prefix)
            stream.write(value)
            stream.flush()
            flushed = sink.tell()  # closing the stream closes the sink, which then does not tell
        frame = room.data[: flushed + len(_FRAME_END)]
        if frame[-len(_FRAME_END) :] != _FRAME_END:
            raise RuntimeError("pyarrow ended a zstd frame in an unknown way")
        return frame

    def _room(self, nbytes: int) -> np.ndarray:
        self._memory.reset()
        return self._memory.take(nbytes)
