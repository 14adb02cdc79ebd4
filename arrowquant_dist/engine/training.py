"""A training as an engine sees it: work that several workers do together, step by step.

Unlike jobs (worker/job.py), which one worker does alone, it ends when all of its workers have ended, and all of them
are restarted if one is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

Tell = Callable[[Any], None]  # sends the driver a note of a few hundred bytes


class JointWork(Protocol):
    """The work of each worker. It travels to other machines, and resumes from what the worker has saved itself."""

    def code(self) -> str:
        """The digest of the code that decides the result (code_digest.py)."""

    def run(self, number: int, count: int, cpus: int, tell: Tell, /) -> None:
        """Does the work of one worker. number: of this worker, from 0. count: number of workers, which
        torch.distributed connects. cpus: CPUs that this worker may use. tell: sends the driver a note."""
