"""Memory of the actors of a run, seen from outside: resident memory of each, idle and at its peak."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.processes import actor_processes

_SECONDS_BEFORE = 0.02  # until the first actor is seen, whose idle memory is that before its first shard
_SECONDS_BETWEEN = 0.1  # between looks after that: one takes milliseconds, which workers would lose


@dataclass
class ActorMemory:
    """Watches the processes below `root` while it is entered.

    idle: {pid: resident bytes when it was first seen as an actor}. peak: {pid: largest resident bytes}.
    """

    root: int
    idle: dict[int, int] = field(default_factory=dict)
    peak: dict[int, int] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def above_idle_nbytes(self) -> int:
        """Peak above idle memory of the actor that grew most, in bytes."""
        return max((self.peak[pid] - idle for pid, idle in self.idle.items()), default=0)

    def _watch(self) -> None:
        while not self._stop.wait(_SECONDS_BETWEEN if self.idle else _SECONDS_BEFORE):
            for pid in [process.pid for process in actor_processes(self.root)]:
                found = _resident_and_peak(pid)
                if found is not None:
                    self.idle.setdefault(pid, found[0])
                    self.peak[pid] = found[1]


def _resident_and_peak(pid: int) -> tuple[int, int] | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text("ascii")
        return tuple(int(status.split(f"{key}:")[1].split(maxsplit=1)[0]) << 10 for key in ("VmRSS", "VmHWM"))  # type: ignore[return-value]
    except (OSError, IndexError):
        return None
