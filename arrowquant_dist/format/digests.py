"""What verifies a row: digests of each 1 MiB of its data, and a checksum of them with its small values."""

from __future__ import annotations

import numpy as np
import xxhash

CHUNK_NBYTES = 1 << 20
DIGEST_NBYTES = 16
_PREFIX = "xxh3_128:"


def chunk_digest(data: memoryview) -> bytes:
    """16 bytes, big-endian, of a chunk."""
    return xxhash.xxh3_128_digest(data)


def chunk_digests(data: np.ndarray) -> bytes:
    """xxh3_128 digests (16 bytes, big-endian) of each 1 MiB of `data` (uint8 [n]); b"" for no data."""
    if 0 < data.size <= CHUNK_NBYTES:
        return xxhash.xxh3_128_digest(data.data)
    view = data.data.cast("B") if data.size else memoryview(b"")
    return b"".join(
        xxhash.xxh3_128_digest(view[start : start + CHUNK_NBYTES])
        for start in range(0, len(view), CHUNK_NBYTES)
    )


def row_checksum(digests: bytes | memoryview, scales: np.ndarray, zero_points: np.ndarray) -> str:
    """`xxh3_128:<hex>` of chunk_digests ‖ scales ‖ zero_points."""
    state = xxhash.xxh3_128(digests)
    state.update(np.ascontiguousarray(scales, "<f4").data.cast("B") if scales.size else b"")
    state.update(np.ascontiguousarray(zero_points, "<f4").data.cast("B") if zero_points.size else b"")
    return f"{_PREFIX}{state.hexdigest()}"


def are_intact(
    data: memoryview, scales: memoryview, zero_points: memoryview, digests: memoryview, checksum: str
) -> bool:
    """Whether a whole row's values, their bytes, are what was written: as `row_checksum` and `first_wrong_chunk` say,
    in a third of their time where the row is small."""
    state = xxhash.xxh3_128(digests)
    if len(scales):
        state.update(scales)
    if len(zero_points):
        state.update(zero_points)
    if f"{_PREFIX}{state.hexdigest()}" != checksum:
        return False
    if 0 < len(data) <= CHUNK_NBYTES:
        return xxhash.xxh3_128_digest(data) == digests
    starts = range(0, len(data), CHUNK_NBYTES)
    found = b"".join(xxhash.xxh3_128_digest(data[start : start + CHUNK_NBYTES]) for start in starts)
    return found == digests


def first_wrong_chunk(data: np.ndarray, start: int, digests: np.ndarray) -> int | None:
    """Index in the row of the first chunk of `data` whose digest is another; None if all are as they should be.

    data: uint8, bytes [start, start + len(data)) of the row's; start is a multiple of CHUNK_NBYTES, and the end is
    too, or is the end of the row's data. digests: uint8, of the whole row.
    """
    first = start // CHUNK_NBYTES
    found = chunk_digests(data)
    expected = digests[first * DIGEST_NBYTES : first * DIGEST_NBYTES + len(found)].tobytes()
    if found == expected:
        return None
    starts = range(0, len(found), DIGEST_NBYTES)
    wrong = next(i for i in starts if found[i:][:DIGEST_NBYTES] != expected[i:][:DIGEST_NBYTES])
    return first + wrong // DIGEST_NBYTES
