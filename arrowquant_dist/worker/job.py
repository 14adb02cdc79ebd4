"""What an engine knows of its work: jobs made of blocks, workers that do them, and what a worker answers.

`quantize` hands out shards of row blocks, an export the files that it writes. Engines need no more of either than this:
what to count, how large it is, and that doing a job twice, or twice at once, ends in one result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar


class JobBlock(Protocol):
    """A piece of a job that progress is counted in. layer_name: of the layer that it is of; is_first: nothing of that
    layer comes before it."""

    @property
    def layer_name(self) -> str: ...
    @property
    def is_first(self) -> bool: ...
    @property
    def source_nbytes(self) -> int: ...


class Job(Protocol):
    """What one worker does in one go, to one object. index: its number in the run. source_nbytes: that of its blocks.
    noun, label: what people call its kind and it: shard 3, file model.safetensors. It travels to workers on other
    machines."""

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
    """What an attempt took: seconds by phase, bytes from and to storage, requests that were repeated."""

    @property
    def seconds(self) -> dict[str, float]: ...
    @property
    def read_nbytes(self) -> int: ...
    @property
    def written_nbytes(self) -> int: ...
    @property
    def retries(self) -> int: ...


class Done(Spent, Protocol):
    """What a worker says of a job that is done, whoever did it.

    worker: the process that did it. notice: what of it whoever started the run is told; None where all of it is at the
    target. At most a few hundred bytes: it travels by way of the engine.
    """

    @property
    def worker(self) -> str: ...
    @property
    def wall_seconds(self) -> float: ...
    @property
    def notice(self) -> Any: ...


OnBlock = Callable[[Any], None]  # told each JobBlock of a job, in their order
OnCompile = Callable[[str], None]  # what kernels are being compiled for; "" when that is over
ShouldStop = Callable[[], bool]

J = TypeVar("J", bound=Job)
J_contra = TypeVar("J_contra", bound=Job, contravariant=True)


class Worker(Protocol[J_contra]):
    """Does jobs, one at a time. name: this process's, `host/pid`."""

    @property
    def name(self) -> str: ...

    def run(self, job: J_contra, on_block: OnBlock, should_stop: ShouldStop, /) -> Done:
        """Does the job, or finds that it is done; what counts may be another worker's work that was first.

        on_block: called after each of its blocks. Where should_stop() turns true, or anything fails, nothing of the
        attempt remains. Raises Interrupted, and what the work raises.
        """

    def committed(self, job: J_contra, /) -> Done | None:
        """What counts of the job, whoever did it; None where it is not done yet."""


class Context(Protocol[J_contra]):
    """What every worker of a run needs to know; small, and travels to other machines."""

    def open_worker(self, node: str | None, on_compile: OnCompile) -> Worker[J_contra]:
        """A worker for one thread of this process. node: the machine's name in what it answers; default its host
        name."""

    def code(self) -> str:
        """The digest of the code of this process that decides what a worker makes (code_digest.py)."""
