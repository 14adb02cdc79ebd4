"""What engines have in common: their interface, and how failures of several shards become one error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from arrowquant_dist.errors import (
    LISTED,
    ArrowQuantError,
    Interrupted,
    PartialRun,
    SourceChanged,
    counted,
    shortened,
)
from arrowquant_dist.worker.job import Context, J, JobBlock

_CAUSE_CHARS = 240  # of each failure beside the first, in an error that lists several


@dataclass(frozen=True, slots=True)
class EngineEvent:
    """What was done since the last event, and who is there now.

    layers: those whose first block is among the `rows` blocks. nbytes: of the source. workers_alive: threads,
    or actors that answer. compiling: what kernels are being compiled for, "" for nothing.
    """

    rows: int
    nbytes: int
    layers: int
    workers_alive: int
    compiling: str = ""


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What an engine knows of its run that receipts do not tell.

    nodes: names of the machines that finished a shard. shard_retries: attempts after a shard's first that were made
    because its worker died, hung or could not reach its storage. stolen: attempts begun at the tail beside one that was
    still running. wasted_seconds: workers' time in attempts that did not count. worker_seconds: the time that workers
    were there, busy or not. notices: {shard: what its worker had to tell} where that is not None.
    """

    nodes: tuple[str, ...] = ()
    shard_retries: int = 0
    stolen: int = 0
    wasted_seconds: float = 0.0
    worker_seconds: float = 0.0
    notices: dict[int, Any] = field(default_factory=dict)


OnEvent = Callable[[EngineEvent], None]  # from any thread


class Engine(Protocol):
    """workers: how many run at a time; known once `run` was called."""

    name: str
    workers: int

    def workers_of_a_process(self, shards: int) -> int:
        """How many workers share a process, and its memory, in a run of so many shards."""

    def run(self, context: Context[J], shards: Sequence[J], on_event: OnEvent) -> EngineFacts:
        """Returns when every shard is done. A shard is any job (worker/job.py): one of `quantize` is done when it is
        committed. One that fails does not stop the others: its error is raised when the rest has finished, and
        everything finished is kept."""


def finished(blocks: Sequence[JobBlock], workers_alive: int) -> EngineEvent:
    """The event of these blocks."""
    nbytes = sum(block.source_nbytes for block in blocks)
    return EngineEvent(len(blocks), nbytes, sum(block.is_first for block in blocks), workers_alive)


def compiles(purpose: str, workers_alive: int) -> EngineEvent:
    """The event of a worker that compiles kernels for `purpose`; of one that has done so where that is ""."""
    return EngineEvent(0, 0, 0, workers_alive, purpose)


def largest_first(shards: Sequence[J]) -> list[J]:
    """The order of dispatch that leaves the shortest tail."""
    return sorted(shards, key=lambda shard: (-shard.source_nbytes, shard.index))


def raise_failures(failures: dict[int, Exception], total: int) -> None:
    """Raises for {shard: what it failed with}, nothing if there is none.

    One cause is raised as it is, as is a changed file of the source that many shards met; of several the first is named
    and the others counted, and bad input stays bad input.
    """
    if not failures:
        return
    causes = [failures[index] for index in sorted(failures)]
    first = next((c for c in causes if not isinstance(c, Interrupted)), causes[0])
    unexpected = next((c for c in causes if not isinstance(c, ArrowQuantError)), None)
    if unexpected is not None:
        raise unexpected
    is_one = all(isinstance(c, SourceChanged) and c.uri == getattr(first, "uri", None) for c in causes)
    if len(causes) == 1 or is_one or isinstance(first, Interrupted):
        raise first
    others = [cause for cause in causes if cause is not first]
    shown = "; ".join(shortened(str(cause), _CAUSE_CHARS) for cause in others[:LISTED])
    more = f" and {len(others) - LISTED} more" if len(others) > LISTED else ""
    message = f"{len(causes)} of {counted(total, 'shard')} failed: {first}; {shown}{more}"
    if all(isinstance(c, ArrowQuantError) and c.exit_code == 2 for c in causes):
        raise type(first)(message)
    raise PartialRun(f"{message}; finished shards are kept, the same command resumes") from first
