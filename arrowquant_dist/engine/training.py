"""What an engine knows of a training: a piece of work that several workers do together, step by step.

Unlike jobs (worker/job.py), which any worker does alone, it ends when all of its workers do, and begins again with all
of them where one is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

Tell = Callable[[Any], None]  # a few hundred bytes, for the driver


class JointWork(Protocol):
    """What each worker does; it travels to other machines, and is begun from what it has saved itself."""

    def code(self) -> str:
        """The digest of the code that decides what comes out (code_digest.py)."""

    def run(self, number: int, count: int, cpus: int, tell: Tell, /) -> None:
        """number: of this worker, from 0, of so many, which torch.distributed connects. cpus: that it may use. tell:
        brings the driver a note."""
