"""Compresses values to zstd frames, in memory that is reused from one value to the next."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence

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

_LARGE_NBYTES = 1 << 15  # for smaller values a Huffman code of their own takes more time than it is worth
_ONE_IN = 64  # one block in so many is compressed by zstd as well, for comparison
_APART = 0.75  # weight of the prediction from each part alone; the rest is from the whole sample
_WORTH = 0.99  # zstd is worth its time if it takes less than this fraction of our size
# the magic number, then: the content size follows in four bytes, and the window is one block (RFC 8878, 3.1.1.1)
_FRAME_START = b"\x28\xb5\x2f\xfd\x80\x38"
_FRAME_END = b"\x01\x00\x00"  # an empty last block
_log = logging.getLogger("arrowquant_dist.format")


class ZstdFrames:
    """Compresses values to zstd frames. Not thread-safe.

    Large values are Huffman-coded by the package's own kernel, 1.7 times as fast as zstd's level 1 and to the same size
    within a hundredth, since codes of weights contain no repetitions. Small values, and values that zstd makes smaller
    according to a sample (zeros, copies, bytes with few distinct values), are compressed by zstd at level 1.

    The kernel's frames are only used after pyarrow's zstd has decoded a few of them correctly in this process: the
    checksums of a dataset are over the uncompressed values, so none of them would notice, when a dataset is written,
    that a frame decodes to something else.

    Arrow's one-shot codec allocates new memory for each result, which for tens of MiB costs as much as the compression;
    its stream writes where it is told to, and takes the pieces of a value without joining them first.
    """

    def __init__(self) -> None:
        self._memory = Arena()
        self._workspace = Workspace()
        self._codec = pa.Codec("zstd")

    def load(self) -> None:
        """Loads the kernel, which takes seconds if it was never compiled, so that no value has to wait for it."""
        _KERNEL.is_right()

    def compress(self, prefix: bytes, value: memoryview) -> memoryview:
        """One frame with `prefix` and `value`, together less than 4 GiB; valid until the next call."""
        if value.nbytes < _LARGE_NBYTES:
            return memoryview(self._codec.compress(prefix + value))
        coded = self._coded(prefix, value) if _KERNEL.is_right() else None
        return coded or self._streamed(prefix, value)

    def predicted_nbytes(self, prefix: bytes, sampled: memoryview, nbytes: int) -> int:
        """Predicted size of the frame that `compress` makes of `prefix` and a value of `nbytes` like `sampled`."""
        if not sampled.nbytes or not nbytes:
            return int(self._codec.compress(prefix).size)
        if nbytes < _LARGE_NBYTES:
            compressed = int(self._codec.compress(prefix + sampled).size)
        else:
            compressed = (self._coded(prefix, sampled) or self._streamed(prefix, sampled)).nbytes
        return round(compressed * nbytes / sampled.nbytes)

    def predicted_of_parts(self, prefix: bytes, sampled: Sequence[np.ndarray], nbytes: int) -> int:
        """Like predicted_nbytes, for a value of several parts, one after the other. sampled: a uint8 sample of each.

        If parts differ, each block of the value has a Huffman code that suits it, while a block of the joined sample
        holds several parts and has one code for all of them. The parts' samples compressed separately would take a
        little less than the value does, so both are combined: for MiniLM's embedding, sampled by a 64th of each part,
        this predicts .7 % less to .4 % more at steps that are in use, and the joined sample alone .3 to 2.5 % more.
        """
        together = self.predicted_nbytes(prefix, np.concatenate(sampled).data, nbytes)
        if nbytes < _LARGE_NBYTES or not _KERNEL.is_right():
            return together
        apart = sum(map(self._nbytes_of_block, sampled)) * nbytes / sum(part.size for part in sampled)
        return round(min(together, _APART * apart + (1.0 - _APART) * together))

    def _nbytes_of_block(self, part: np.ndarray) -> float:
        """Compressed size of a sample's share of a block that is filled with values like it."""
        block = np.tile(part, max(1, BLOCK_NBYTES // max(1, part.size)))
        sizes = np.empty(block_count(block.size), np.int64)
        self.frame_of_kernel(b"", block, sizes)
        return float(sizes.sum()) * part.size / max(1, block.size)

    def _coded(self, prefix: bytes, value: memoryview) -> memoryview | None:
        """The frame made by the kernel; None if zstd does better."""
        values = _as_array(value)
        sizes = np.empty(block_count(values.size), np.int64)
        frame = self.frame_of_kernel(prefix, values, sizes)
        return None if self._zstd_is_smaller(values, sizes) else frame

    def frame_of_kernel(self, prefix: bytes, values: np.ndarray, sizes: np.ndarray) -> memoryview:
        """The frame made by the kernel, even if zstd's would be smaller; valid until the next call. values: uint8 [n].
        sizes: int64 [blocks], receives the size in bytes of each block."""
        nbytes = len(prefix) + values.size
        raw = (len(prefix) << 3).to_bytes(3, "little")  # the header of an uncompressed block
        start = _FRAME_START + nbytes.to_bytes(4, "little") + raw + prefix
        frame = self._room(len(start) + blocks_bound(values.size) + len(_FRAME_END))
        frame[: len(start)] = np.frombuffer(start, np.uint8)
        end = write_blocks(values, frame, len(start), sizes, self._workspace)
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
        room = self._room(nbytes + (nbytes >> 8) + (1 << 16))  # room for incompressible values and headers
        sink = pa.FixedSizeBufferWriter(pa.py_buffer(room))
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(prefix)
            stream.write(value)
            stream.flush()
            flushed = sink.tell()  # closing the stream closes the sink, which has no position then
        frame = room.data[: flushed + len(_FRAME_END)]
        if frame[-len(_FRAME_END) :] != _FRAME_END:
            raise RuntimeError("pyarrow ended a zstd frame in an unknown way")
        return frame

    def _room(self, nbytes: int) -> np.ndarray:
        self._memory.reset()
        return self._memory.take(nbytes)


class _KernelCheck:
    """Whether zstd's own decoder decodes the kernel's frames to the same values; checked once per process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._verdict: bool | None = None

    def is_right(self) -> bool:
        with self._lock:
            if self._verdict is None:
                self._verdict = all(_is_read_back(value) for value in _samples())
                if not self._verdict:
                    _log.warning(
                        "the zstd kernel writes wrong frames on this machine: pyarrow compresses instead"
                    )
            return self._verdict


_KERNEL = _KernelCheck()


def _is_read_back(value: np.ndarray) -> bool:
    """Whether pyarrow decodes the kernel's frame of a value to that value."""
    values, prefix = _as_array(value.data), b"\x03\x02\x01\x00"
    frame = ZstdFrames().frame_of_kernel(prefix, values, np.empty(block_count(values.size), np.int64))
    try:
        found = pa.Codec("zstd").decompress(frame, len(prefix) + values.size, asbytes=True)
    except OSError:  # "Corrupt ZSTD compressed data"
        return False
    return bool(found == prefix + value.tobytes())


def _samples() -> Iterator[np.ndarray]:
    """Yields uint8 values of each kind that the kernel treats differently: codes of 1 to 7 bits of entropy, noise that
    it does not compress, a single repeated byte, and codes after a block of noise. Each has three blocks, of which the
    last is short and of an odd length."""
    noise = np.random.default_rng(1).integers(0, 256, 2 * BLOCK_NBYTES + 12_345, np.uint8)
    normal = noise.astype(np.int16) - 128
    for step in (1, 2):
        normal = normal + np.roll(normal, step)  # in the end sums of four numbers
    codes = [(normal // step).astype(np.uint8) for step in (4, 8, 40, 200)]
    yield from codes
    yield noise
    yield np.full(noise.size, 7, np.uint8)
    yield np.concatenate([noise[:BLOCK_NBYTES], codes[2][BLOCK_NBYTES:]])


def _as_array(value: memoryview) -> np.ndarray:
    """uint8 [n], always read-only, so that the kernel is compiled for one type of array only."""
    return np.frombuffer(value.toreadonly(), np.uint8)
