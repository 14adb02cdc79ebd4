"""Logs one line per attempt at a shard, for machines: JSON on the logger `arrowquant_dist.shards`, at INFO from the
Ray engine and at DEBUG from the inline one, whose command reports a failure in one line and nothing else.

The engine's process writes it, not the worker: it knows what became of attempts whose worker is gone, and `ray job
logs` shows its output. A caller of the library decides where the lines go; the command line shows them on stderr
unless that is a terminal.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from arrowquant_dist.worker.job import Job, Spent

SHARDS = logging.getLogger("arrowquant_dist.shards")
_ERROR_CHARS = 300


def log_attempt(
    shard: Job, attempt: int, outcome: str, node: str, level: int = logging.INFO, **figures: Any
) -> None:
    """Logs one attempt. attempt: its number, from 1. outcome: `done`, or how it ended. figures: plain values; the
    text of an `error` is truncated."""
    if not SHARDS.isEnabledFor(level):
        return
    error = figures.get("error")
    figures |= {"error": str(error)[:_ERROR_CHARS]} if error is not None else {}
    line = {
        "shard": shard.index,
        "attempt": attempt,
        "outcome": outcome,
        "node": node,
        "layers": sum(block.is_first for block in shard.blocks),
        "row_blocks": len(shard.blocks),
        "source_bytes": shard.source_nbytes,
        **{name: value for name, value in figures.items() if value is not None},
    }
    SHARDS.log(level, json.dumps(line, separators=(",", ":")))


def figures_of(spent: Spent) -> dict[str, Any]:
    """The cost of an attempt, under the names that the log line uses."""
    return {
        "seconds": {phase: round(seconds, 3) for phase, seconds in spent.seconds.items()},
        "read_bytes": spent.read_nbytes,
        "written_bytes": spent.written_nbytes,
        "request_retries": spent.retries,
    }


@contextmanager
def shown_shards(out: TextIO) -> Iterator[None]:
    """Writes the lines to `out`, unless that is a terminal, where a progress bar is shown."""
    if out.isatty():
        yield
        return
    handler, level = logging.StreamHandler(out), SHARDS.level
    handler.setFormatter(logging.Formatter("%(message)s"))
    SHARDS.addHandler(handler)
    SHARDS.setLevel(logging.INFO)
    try:
        yield
    finally:
        SHARDS.setLevel(level)
        SHARDS.removeHandler(handler)
