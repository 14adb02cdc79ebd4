"""Jobs that take turns: each round has all of them, so that a busy minute slows all of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

FAILED = "failed, see stderr"

Job = Callable[[], float]  # its own seconds


def in_turns(jobs: Mapping[str, Job], runs: int) -> dict[str, list[float]]:
    """The seconds of each round, after one that does not count. A job that fails in that one is reported on stderr and
    left out, so that a peer that does not work on this machine does not end the others' measurements."""
    found: dict[str, list[float]] = {}
    for name, job in jobs.items():
        try:
            job()
            found[name] = []
        except RuntimeError as failure:
            print(f"{name}: {failure}", file=sys.stderr, flush=True)
    for _ in range(runs):
        for name, taken in found.items():
            taken.append(jobs[name]())
    return found
