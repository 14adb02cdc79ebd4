"""Counts what was transferred, for receipts, metrics and reports."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Transferred:
    """What was transferred. read_nbytes, written_nbytes: bytes of responses and of bodies sent, repeats included.
    retries: requests that were repeated. hedged: ranges that were requested a second time because the first response
    was late."""

    read_nbytes: int = 0
    written_nbytes: int = 0
    retries: int = 0
    hedged: int = 0

    def __sub__(self, other: Transferred) -> Transferred:
        return Transferred(
            self.read_nbytes - other.read_nbytes,
            self.written_nbytes - other.written_nbytes,
            self.retries - other.retries,
            self.hedged - other.hedged,
        )

    def __add__(self, other: Transferred) -> Transferred:
        return Transferred(
            self.read_nbytes + other.read_nbytes,
            self.written_nbytes + other.written_nbytes,
            self.retries + other.retries,
            self.hedged + other.hedged,
        )


class Traffic:
    """The counts of one store, which any thread may add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read_nbytes = self._written_nbytes = self._retries = self._hedged = 0

    @property
    def total(self) -> Transferred:
        with self._lock:
            return Transferred(self._read_nbytes, self._written_nbytes, self._retries, self._hedged)

    def add(
        self, *, read_nbytes: int = 0, written_nbytes: int = 0, retries: int = 0, hedged: int = 0
    ) -> None:
        with self._lock:
            self._read_nbytes += read_nbytes
            self._written_nbytes += written_nbytes
            self._retries += retries
            self._hedged += hedged
