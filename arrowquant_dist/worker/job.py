"""The work as an engine sees it: jobs made of blocks, workers that do them, and a worker's answers.

`quantize` hands out shards of row blocks, an export the files that it writes. This is all that engines need to know
of either: what to count, how large it is, and that doing a job twice, or twice at once, gives one result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar


class JobBlock(Protocol):
    """A piece of a job, the unit in which progress is counted. layer_name: the layer that it belongs to. is_first:
    whether it is the first block of that layer."""

    @property
    def layer_name(self) -> str: ...
    @property
    def is_first(self) -> bool: ...
    @property
    def source_nbytes(self) -> int: ...


class Job(Protocol):
    """What one worker does in one go, for one object. index: its number in the run. source_nbytes: total of its
    blocks. noun, label: its kind and its name for people: shard 3, file model.safetensors. Jobs travel to workers on
    other machines."""

    @property
    def index(self) -> int: ...
    @property
    def noun(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def blocks(self) -> Sequence[JobBlock]: ...
    @property
    def source_nbytes(self) -> int: ...


class Spent(Protocol):
    """The cost of an attempt: seconds by phase, bytes read from and written to storage, repeated requests."""

    @property
    def seconds(self) -> dict[str, float]: ...
    @property
    def read_nbytes(self) -> int: ...
    @property
    def written_nbytes(self) -> int: ...
    @property
    def retries(self) -> int: ...


class Done(Spent, Protocol):
    """A worker's report of a job that is done, whoever did it.

    worker: the process that did it. notice: what the caller of the run has to be told beyond what is stored at the
    target; None if nothing. At most a few hundred bytes, since it travels through the engine.
    """

    @property
    def worker(self) -> str: ...
    @property
    def wall_seconds(self) -> float: ...
    @property
    def notice(self) -> Any: ...


OnBlock = Callable[[Any], None]  # called with each JobBlock of a job, in their order
OnCompile = Callable[[str], None]  # called with what kernels are compiled for; with "" when that is over
ShouldStop = Callable[[], bool]

J = TypeVar("J", bound=Job)
J_contra = TypeVar("J_contra", bound=Job, contravariant=True)


class Worker(Protocol[J_contra]):
    """Does jobs, one at a time. name: name of this process, `host/pid`."""

    @property
    def name(self) -> str: ...

    def run(self, job: J_contra, on_block: OnBlock, should_stop: ShouldStop, /) -> Done:
        """Does the job, or finds that it is done; what counts may be the work of another worker that was first.

        on_block: called after each of the job's blocks. If should_stop() returns true, or anything fails, nothing of
        the attempt remains. Raises Interrupted, and what the work raises.
        """

    def committed(self, job: J_contra, /) -> Done | None:
        """The report that counts for the job, whoever did it; None if it is not done yet."""


class Context(Protocol[J_contra]):
    """What every worker of a run needs to know; small, and travels to other machines."""

    def open_worker(self, node: str | None, on_compile: OnCompile) -> Worker[J_contra]:
        """Opens a worker for one thread of this process. node: the machine's name in its reports; default its host
        name. on_compile: called while kernels are compiled."""

    def code(self) -> str:
        """The digest of this process's code that decides what a worker makes (code_digest.py)."""
