"""How far a run has come, and how fast it goes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

_WINDOW_SECONDS = 120.0  # time over which the rate is taken
_SAMPLE_SECONDS = 1.0
_TELLING_SECONDS, _TELLING_SHARE = 5.0, 0.01  # work that it takes to predict how long the rest takes


class HowFar(Protocol):
    """How much of a command's source is done; resumed work counts as done from the first event on.

    total_layers: 0 where layers are not counted; workers are then not shown either. compiling: what kernels are being
    compiled for; "" for nothing.
    """

    @property
    def done_nbytes(self) -> int: ...
    @property
    def total_nbytes(self) -> int: ...
    @property
    def done_layers(self) -> int: ...
    @property
    def total_layers(self) -> int: ...
    @property
    def workers_alive(self) -> int: ...
    @property
    def compiling(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Bytes:
    """A HowFar that is counted in bytes alone."""

    done_nbytes: int
    total_nbytes: int
    done_layers: int = 0
    total_layers: int = 0
    workers_alive: int = 0
    compiling: str = ""


@dataclass(slots=True)
class RecentRate:
    """The speed over the last two minutes, or since the work began. Not thread-safe.

    A run of hours slows down or speeds up as workers go and come, and what is left takes as long as it takes now. The
    first event counts as work that was done before. Work lost to a retry is subtracted, so the rate is that of work
    that counts.

    Work begins with the last event before something is done: until then workers are waited for and kernels compiled,
    which says nothing about the rest. The time left is not predicted before five seconds of work, and a hundredth of
    all of it, are done.
    """

    _samples: deque[tuple[float, int]] = field(default_factory=deque)  # (clock, bytes done)
    _begin: tuple[float, int] | None = None  # of the work

    def add(self, now: float, done_nbytes: int) -> None:
        samples = self._samples
        if self._begin is None or (len(samples) < 2 and done_nbytes <= self._begin[1]):
            self._begin = now, done_nbytes
            samples.clear()
        if len(samples) > 1 and now - samples[-2][0] < _SAMPLE_SECONDS:
            samples.pop()
        samples.append((now, done_nbytes))
        while len(samples) > 2 and samples[1][0] <= now - _WINDOW_SECONDS:
            samples.popleft()

    def nbytes_per_second(self, now: float) -> float | None:
        """The rate; None where nothing was done yet."""
        if not self._samples:
            return None
        (since, before), (_, done) = self._samples[0], self._samples[-1]
        return (done - before) / (now - since) if now > since and done > before else None

    def seconds_left(self, now: float, event: HowFar) -> float | None:
        """The predicted time left; None where all is done, or where it cannot be predicted yet."""
        left, rate = event.total_nbytes - event.done_nbytes, self.nbytes_per_second(now)
        if rate is None or self._begin is None or left <= 0:
            return None
        since, before = self._begin
        says_enough = event.done_nbytes - before >= _TELLING_SHARE * event.total_nbytes
        return left / rate if says_enough and now - since >= _TELLING_SECONDS else None
