"""Digests of a tensor's bytes, stored beside it: `NAME.digests`, uint8 [runs, 16], canonical xxh3_128 of each 1 MiB.

So a part of a tensor is verified as it is read, by reading the runs that it lies in.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xxhash

DIGESTED_NBYTES = 1 << 20
RUN_DIGEST_NBYTES = 16


def digests_name(name: str) -> str:
    """Of the tensor that has those of the tensor `name`."""
    return f"{name}.digests"


def digests_shape(nbytes: int) -> tuple[int, int]:
    """nbytes: of the tensor."""
    return -(-nbytes // DIGESTED_NBYTES), RUN_DIGEST_NBYTES


class RunDigests:
    """Of bytes as they go by, in pieces of any size."""

    def __init__(self) -> None:
        self._found: list[bytes] = []
        self._open, self._nbytes = xxhash.xxh3_128(), 0

    def add(self, data: np.ndarray) -> None:
        """data: contiguous, of any dtype."""
        flat = data.reshape(-1).view(np.uint8)
        while flat.size:
            own = flat[: DIGESTED_NBYTES - self._nbytes]
            self._open.update(own.data)
            self._nbytes += own.size
            flat = flat[own.size :]
            if self._nbytes == DIGESTED_NBYTES:
                self._close()

    def finished(self) -> np.ndarray:
        """uint8 [runs, 16]"""
        if self._nbytes:
            self._close()
        return np.frombuffer(b"".join(self._found), np.uint8).reshape(-1, RUN_DIGEST_NBYTES)

    def _close(self) -> None:
        self._found.append(self._open.digest())
        self._open, self._nbytes = xxhash.xxh3_128(), 0


def damaged_runs(data: np.ndarray, digests: np.ndarray) -> Iterator[int]:
    """Numbers of the runs whose digests are others. data: uint8, from a run's beginning on. digests: uint8, of each."""
    runs = RunDigests()
    runs.add(data)
    found = runs.finished()
    yield from np.flatnonzero((found != digests.reshape(found.shape)).any(axis=1)).tolist()
