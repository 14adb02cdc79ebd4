"""What engines have in common: their interface, and how the failures of several shards become one error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from arrowquant_dist.errors import (
    LISTED,
    ArrowQuantError,
    Interrupted,
    PartialRun,
    SourceChanged,
    counted,
    listed,
    shortened,
)
from arrowquant_dist.worker.job import Context, J, Job, JobBlock

_CAUSE_CHARS = 240  # maximum length of each reason but the first, in an error that lists several


@dataclass(frozen=True, slots=True)
class EngineEvent:
    """What was done since the last event, and the workers at present.

    rows: number of row blocks finished.
    nbytes: their bytes in the source.
    layers: layers whose first block is among them.
    workers_alive: number of threads, or of actors that answer.
    compiling: what kernels are being compiled for, "" for nothing.
    """

    rows: int
    nbytes: int
    layers: int
    workers_alive: int
    compiling: str = ""


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What an engine knows about its run beyond the receipts.

    nodes: names of the machines that finished a shard.
    shard_retries: attempts after a shard's first that were made because its worker died, hung or could not reach its
        storage.
    stolen: attempts begun near the end beside one that was still running.
    wasted_seconds: workers' time in attempts that did not count.
    worker_seconds: total time for which workers existed, busy or not.
    notices: {shard: what its worker had to tell}, without Nones.
    """

    nodes: tuple[str, ...] = ()
    shard_retries: int = 0
    stolen: int = 0
    wasted_seconds: float = 0.0
    worker_seconds: float = 0.0
    notices: dict[int, Any] = field(default_factory=dict)


OnEvent = Callable[[EngineEvent], None]  # from any thread


class Engine(Protocol):
    """Runs jobs by workers. workers: how many run at a time; known once `run` was called."""

    name: str
    workers: int

    def workers_of_a_process(self, shards: int) -> int:
        """The number of workers that share a process, and its memory, in a run of `shards` shards."""

    def run(self, context: Context[J], shards: Sequence[J], on_event: OnEvent) -> EngineFacts:
        """Does the jobs; returns when every shard is done. A shard is any job (worker/job.py); one of `quantize` is
        done when it is committed. A failing shard does not stop the others: its error is raised when the rest has
        finished, and everything finished is kept."""

    def run_steps(
        self, context: Context[J], steps: Iterable[Sequence[J]], on_event: OnEvent, widest: int
    ) -> EngineFacts:
        """Does the jobs of several steps with the same workers: the next step is taken from the iterator, in this
        thread, when every job of the previous one is done. Indices have to be unique across steps. widest: maximum
        number of jobs in a step."""


def finished(blocks: Sequence[JobBlock], workers_alive: int) -> EngineEvent:
    """The event for these finished blocks."""
    nbytes = sum(block.source_nbytes for block in blocks)
    return EngineEvent(len(blocks), nbytes, sum(block.is_first for block in blocks), workers_alive)


def compiles(purpose: str, workers_alive: int) -> EngineEvent:
    """The event of a worker that compiles kernels for `purpose`, or has finished compiling if that is ""."""
    return EngineEvent(0, 0, 0, workers_alive, purpose)


def largest_first(shards: Sequence[J]) -> list[J]:
    """The shards in the order of dispatch that leaves the shortest tail."""
    return sorted(shards, key=lambda shard: (-shard.source_nbytes, shard.index))


def raise_failures(failures: Mapping[int, Exception], jobs: Sequence[Job]) -> None:
    """Raises one error for `failures`, {index of a job: its error}; does nothing if it is empty.

    The error of a single job is raised as it is, and so is a changed source file that many jobs met. Otherwise each
    reason is given once, with the jobs that failed for it, the first reason in full. If every error is bad input, the
    result is bad input too. The error has the place (`layer`, `uri`, `byte_range`) that all of them have in common.
    """
    if not failures:
        return
    causes = [failures[index] for index in sorted(failures)]
    first = next((c for c in causes if not isinstance(c, Interrupted)), causes[0])
    unexpected = next((c for c in causes if not isinstance(c, ArrowQuantError)), None)
    if unexpected is not None:
        raise unexpected
    is_one = all(isinstance(c, SourceChanged) and c.uri == getattr(first, "uri", None) for c in causes)
    is_one = is_one or (
        len(causes) == 1 and not isinstance(first, PartialRun)
    )  # a PartialRun does not name the job
    if is_one or isinstance(first, Interrupted):
        raise first
    raise _of_several(_reasons(failures, jobs), counted(len(jobs), jobs[0].noun)) from first


@dataclass(slots=True)
class _Reason:
    """Why some jobs failed: errors of one class with one message, wherever they occurred."""

    errors: list[ArrowQuantError] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)

    @property
    def places(self) -> list[str]:
        return [*dict.fromkeys(error.place for error in self.errors if error.place)]

    @property
    def of_jobs(self) -> str:
        """`shard 3, 'a' … 'b'`, `shards 3, 4 and 5`."""
        job = self.jobs[0]
        if len(self.jobs) > 1:
            return f"{job.noun}s {listed(each.label for each in self.jobs)}"
        ends = [] if self.places else [*job.blocks[:1], *job.blocks[-1:]]
        layers = " … ".join(dict.fromkeys(repr(shortened(block.layer_name)) for block in ends))
        return f"{job.noun} {job.label}" + (f", {layers}" if layers else "")

    @property
    def advice(self) -> str:
        return self.errors[0].message.partition("; ")[2]

    def told(self, *, with_places: bool, with_advice: bool) -> str:
        where = f"{listed(self.places)}: " if with_places and self.places else ""
        message = self.errors[0].message
        return f"{where}{message if with_advice else message.partition('; ')[0]} ({self.of_jobs})"


def _reasons(failures: Mapping[int, Exception], jobs: Sequence[Job]) -> list[_Reason]:
    """The reasons by their first jobs; interruptions come last, since something else has caused them."""
    found: dict[tuple[type, str], _Reason] = {}
    for job in sorted(jobs, key=lambda job: job.index):
        error = failures.get(job.index)
        if isinstance(error, ArrowQuantError):
            reason = found.setdefault((type(error), error.message), _Reason())
            reason.errors.append(error)
            reason.jobs.append(job)
    return sorted(found.values(), key=lambda reason: isinstance(reason.errors[0], Interrupted))


def _of_several(reasons: Sequence[_Reason], total: str) -> ArrowQuantError:
    """One error for these reasons. total: the number of jobs, with their noun."""
    errors = [error for reason in reasons for error in reason.errors]
    places = {(error.layer, error.uri, error.byte_range) for error in errors}
    layer, uri, byte_range = places.pop() if len(places) == 1 else (None, None, None)
    is_anywhere = (layer, uri, byte_range) == (None, None, None)
    first = {reason.advice: reason for reason in reversed(reasons)}  # first reason that ends with each advice
    told = [
        reason.told(with_places=is_anywhere, with_advice=first[reason.advice] is reason)
        for reason in reasons[:LISTED]
    ]
    told[1:] = [shortened(text, _CAUSE_CHARS) for text in told[1:]]
    if len(reasons) > LISTED:
        told.append(f"and {counted(len(reasons) - LISTED, 'other reason')}")
    message = f"{len(errors)} of {total} failed: {'; '.join(told)}"
    kind = type(errors[0])
    if any(error.exit_code != 2 for error in errors):
        kind = PartialRun
        message += f"; finished {reasons[0].jobs[0].noun}s are kept, the same command resumes"
    return kind(message, layer=layer, uri=uri, byte_range=byte_range)
