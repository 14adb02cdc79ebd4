"""Digests of a tensor's bytes, stored beside it as `NAME.digests`, uint8 [runs, 16]: those of format/digests.py, one
for each run of 1 MiB.

So a part of a tensor can be verified when it is read, by reading the runs that it lies in.
"""

from __future__ import annotations

import numpy as np
import xxhash

from arrowquant_dist.format.digests import CHUNK_NBYTES, DIGEST_NBYTES


def digests_name(name: str) -> str:
    """The name of the tensor that holds the digests of the tensor `name`."""
    return f"{name}.digests"


def digests_shape(nbytes: int) -> tuple[int, int]:
    """The shape of the digests. nbytes: size of the tensor in bytes."""
    return -(-nbytes // CHUNK_NBYTES), DIGEST_NBYTES


class RunDigests:
    """Computes the digests of bytes that arrive in pieces of any size."""

    def __init__(self) -> None:
        self._found: list[bytes] = []
        self._open, self._nbytes = xxhash.xxh3_128(), 0

    def add(self, data: np.ndarray) -> None:
        """data: contiguous, of any dtype."""
        flat = data.reshape(-1).view(np.uint8)
        while flat.size:
            own = flat[: CHUNK_NBYTES - self._nbytes]
            self._open.update(own.data)
            self._nbytes += own.size
            flat = flat[own.size :]
            if self._nbytes == CHUNK_NBYTES:
                self._close()

    def finished(self) -> np.ndarray:
        """uint8 [runs, 16]"""
        if self._nbytes:
            self._close()
        return np.frombuffer(b"".join(self._found), np.uint8).reshape(-1, DIGEST_NBYTES)

    def _close(self) -> None:
        self._found.append(self._open.digest())
        self._open, self._nbytes = xxhash.xxh3_128(), 0
