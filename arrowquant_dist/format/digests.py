"""Verification of a row: digests of each 1 MiB of its data, and a checksum over the digests and its small values."""

from __future__ import annotations

import numpy as np
import xxhash

CHUNK_NBYTES = 1 << 20
DIGEST_NBYTES = 16


def chunk_digest(data: memoryview) -> bytes:
    """xxh3_128 digest of a chunk: 16 bytes, big-endian."""
    return xxhash.xxh3_128_digest(data)


def chunk_digests(data: np.ndarray) -> bytes:
    """xxh3_128 digests (16 bytes, big-endian) of each 1 MiB of `data` (uint8 [n]); b"" for no data."""
    if 0 < data.size <= CHUNK_NBYTES:
        return chunk_digest(data.data)
    view = data.data.cast("B") if data.size else memoryview(b"")
    starts = range(0, len(view), CHUNK_NBYTES)
    return b"".join(chunk_digest(view[start : start + CHUNK_NBYTES]) for start in starts)


def row_checksum(digests: bytes | memoryview, scales: np.ndarray, zero_points: np.ndarray) -> str:
    """`xxh3_128:<hex>` of chunk_digests ‖ scales ‖ zero_points."""
    return _checksum(digests, *(np.ascontiguousarray(numbers, "<f4") for numbers in (scales, zero_points)))


def are_intact(
    data: np.ndarray, scales: np.ndarray, zero_points: np.ndarray, digests: np.ndarray, checksum: str
) -> bool:
    """Whether a whole row's values, given as bytes (uint8), are what was written. Checks what `row_checksum` and
    `first_wrong_chunk` check, in less time if the row is small."""
    if _checksum(digests.data, scales, zero_points) != checksum:
        return False
    return chunk_digests(data) == digests.tobytes()


def _checksum(digests: bytes | memoryview, *values: np.ndarray) -> str:
    state = xxhash.xxh3_128(digests)
    for one in values:
        state.update(one.data if one.size else b"")
    return f"xxh3_128:{state.hexdigest()}"


def first_wrong_chunk(data: np.ndarray, start: int, digests: np.ndarray) -> int | None:
    """Index in the row of the first chunk of `data` whose digest differs; None if all are right.

    data: uint8, bytes [start, start + len(data)) of the row's data, which end at a multiple of CHUNK_NBYTES or with the
    row's data. start: a multiple of CHUNK_NBYTES. digests: uint8, those of the whole row.
    """
    first = start // CHUNK_NBYTES
    found = chunk_digests(data)
    expected = digests[first * DIGEST_NBYTES : first * DIGEST_NBYTES + len(found)].tobytes()
    if found == expected:
        return None
    starts = range(0, len(found), DIGEST_NBYTES)
    wrong = next(i for i in starts if found[i:][:DIGEST_NBYTES] != expected[i:][:DIGEST_NBYTES])
    return first + wrong // DIGEST_NBYTES
