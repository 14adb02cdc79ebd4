"""Faults between a client and an HTTP server, and the requests that they hit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from random import Random


class Kind(Enum):
    """A way to fail."""

    SLOW_DOWN = "503 SlowDown"
    INTERNAL_ERROR = "500 InternalError"
    RESET_REQUEST = "connection reset before the request is applied"
    RESET_BODY = "connection reset in the middle of the answer's body"
    TRUNCATED_BODY = "half of the body under the full Content-Length, then the end of the connection"
    FLIPPED_BYTE = "one bit of one byte of the answer's body is wrong"
    FLIPPED_UPLOAD = "one bit of one byte of the request's body is wrong"
    STALLED_HEADERS = "the request is taken, then nothing"
    STALLED_BODY = "half of the body, then nothing"
    LOST_RESPONSE = "the request is applied, its answer is not sent"
    TRICKLE = "the body comes a few bytes at a time"


@dataclass(frozen=True)
class Fault:
    """A fault and the requests that it hits.

    kind: the way to fail. method: regex that has to match the whole method. path: regex, searched for in path?query.
    header: regex, searched for in the lines of the head. probability: probability for each request that matches.
    nth: hit only the n-th of these, counted from 1. limit: maximum number of requests hit.
    """

    kind: Kind
    method: str = ".*"
    path: str = ""
    header: str = ""
    probability: float = 1.0
    nth: int | None = None
    limit: int | None = None

    def matches(self, method: str, path: str, head: str) -> bool:
        return (
            re.fullmatch(self.method, method) is not None
            and re.search(self.path, path) is not None
            and re.search(self.header, head, re.IGNORECASE) is not None
        )


@dataclass(frozen=True)
class Injected:
    """A request that was hit by a fault."""

    kind: Kind
    method: str
    path: str


class Script:
    """Chooses faults. The same seed and order of requests gives the same faults; the first rule that fires counts."""

    def __init__(self, faults: tuple[Fault, ...], seed: int) -> None:
        self._faults = faults
        self._random = Random(seed)  # noqa: S311 (no secret)
        self._matched = [0] * len(faults)
        self._hit = [0] * len(faults)
        self.injected: list[Injected] = []

    def choose(self, method: str, path: str, head: str) -> int | None:
        """The number of the fault for this request, or None. Call `happened` or `spare` afterwards."""
        for number, fault in enumerate(self._faults):
            if fault.matches(method, path, head):
                self._matched[number] += 1
                if self._fires(number, fault):
                    self._hit[number] += 1
                    return number
        return None

    def kind(self, number: int | None) -> Kind | None:
        return None if number is None else self._faults[number].kind

    def happened(self, number: int, method: str, path: str) -> None:
        """Records that the fault was carried out."""
        self.injected.append(Injected(self._faults[number].kind, method, path))

    def spare(self, number: int) -> None:
        """Takes the fault back: there was no body to spoil, or the request whose answer was to be lost was refused."""
        self._hit[number] -= 1

    def byte_to_flip(self, nbytes: int) -> tuple[int, int]:
        """The (index, mask) of a byte to change in a body of `nbytes`."""
        return self._random.randrange(nbytes), 1 << self._random.randrange(8)

    def _fires(self, number: int, fault: Fault) -> bool:
        if fault.limit is not None and self._hit[number] >= fault.limit:
            return False
        if fault.nth is not None:
            return self._matched[number] == fault.nth
        return self._random.random() < fault.probability
