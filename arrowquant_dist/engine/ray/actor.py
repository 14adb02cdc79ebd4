"""The actor: a worker in another process that can be asked for its progress and told to stop."""

from __future__ import annotations

import errno
import pickle
import socket
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import ray

from arrowquant_dist.code_digest import digests
from arrowquant_dist.engine.ray.metrics import WorkerMetrics
from arrowquant_dist.errors import (
    ArrowQuantError,
    CorruptWeights,
    IncompleteDataset,
    Interrupted,
    MemoryBudgetExceeded,
    StorageError,
)
from arrowquant_dist.worker.job import Context, Done, Job, JobBlock, Worker

WATCH = "watch"  # concurrency group of `progress` and `stop`: they run in a thread of their own beside `run`
DONE, FOUND, BEATEN, STOPPED, FAILED = "done", "found", "beaten", "stopped", "failed"

_MAY_PASS = (StorageError, CorruptWeights, IncompleteDataset)
_STAYS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}
_NO_MEMORY = "a worker got no memory for a row block; lower block_bytes or give the nodes more memory"


@dataclass(frozen=True, slots=True)
class Hello:
    """An actor's introduction. node: its name in receipts. codes: digests of the actor's code; if the packages are
    the same, one of them is the driver's."""

    node: str
    node_id: str
    codes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """How an attempt ended; a few hundred bytes, whatever the shard.

    outcome: `done`: its part counts; `found`: the part of an earlier attempt already counted, nothing was done;
        `beaten`: another attempt was first; `stopped`: it was told to stop; `failed`: see `error`.
    may_pass: whether another attempt, elsewhere or later, may succeed after the error.
    seconds: by phase.
    notice: what the worker has to tell, if the shard is done.
    """

    outcome: str
    seconds: dict[str, float]
    wall_seconds: float = 0.0
    read_nbytes: int = 0
    written_nbytes: int = 0
    retries: int = 0
    error: ArrowQuantError | None = None
    may_pass: bool = False
    notice: Any = None


@dataclass(frozen=True, slots=True)
class ActorProgress:
    """An actor's progress. ticket: of the attempt at work; 0 before the first. blocks: number of its finished row
    blocks. compiling: what kernels are being compiled for, "" for nothing."""

    ticket: int
    blocks: int
    compiling: str


class ShardActor:
    """Does one shard at a time; meanwhile answers `progress` and `stop`, called in the concurrency group WATCH.

    Attempts have tickets, numbers from 1 that the driver assigns. An attempt can be stopped before it begins, which
    takes it back from the actor's queue.

    code: the driver's code digest. context: pickled, and unpickled only if the code is the same, since another
    version's context may have fields that this one does not know. An actor of another version says hello and gets no
    job.
    """

    def __init__(self, code: str, context: bytes) -> None:
        node_id = ray.get_runtime_context().get_node_id()
        self._hello = Hello(f"{socket.gethostname()}/{node_id[:8]}", node_id, self._codes())
        if code in self._hello.codes:
            self._worker = self._open_worker(pickle.loads(context))  # noqa: S301 - the driver's, as all that Ray brings
        self._metrics = WorkerMetrics()
        self._progress = (0, 0)
        self._compiling = ""
        self._stopped: set[int] = set()

    def hello(self) -> Hello:
        """Returns as soon as the actor is there."""
        return self._hello

    def progress(self) -> ActorProgress:
        self._metrics.flush()
        return ActorProgress(*self._progress, self._compiling)

    def stop(self, tickets: Collection[int]) -> None:
        """These attempts end after their current row block, or do not begin."""
        self._stopped.update(tickets)

    def run(self, ticket: int, shard: Job, *, look_first: bool) -> Result:
        """Makes one attempt. look_first: first check whether an earlier one was committed, even if its worker is lost.

        Errors of this package are returned, others raised.
        """
        self._progress = (ticket, 0)
        try:
            if ticket in self._stopped:
                return Result(STOPPED, {})
            found = self._worker.committed(shard) if look_first else None
            if found is not None:
                return Result(FOUND, {}, notice=found.notice)
            return self._result(self._worker.run(shard, self._count, lambda: ticket in self._stopped))
        except Interrupted:
            return Result(STOPPED, {})
        except ArrowQuantError as error:
            return Result(FAILED, {}, error=error, may_pass=may_pass_elsewhere(error))
        except MemoryError:
            return Result(FAILED, {}, error=MemoryBudgetExceeded(_NO_MEMORY), may_pass=True)
        finally:
            self._metrics.flush()

    def _codes(self) -> tuple[str, ...]:
        return digests()

    def _open_worker(self, context: Context[Any]) -> Worker[Any]:
        return context.open_worker(self._hello.node, self._compile)

    def _compile(self, purpose: str) -> None:
        self._compiling = purpose

    def _count(self, block: JobBlock) -> None:
        ticket, blocks = self._progress
        self._progress = (ticket, blocks + 1)
        self._metrics.add_block(block)

    def _result(self, receipt: Done) -> Result:
        if receipt.worker != self._worker.name:
            return Result(BEATEN, {}, notice=receipt.notice)
        self._metrics.add_receipt(receipt)
        return Result(
            DONE,
            receipt.seconds,
            receipt.wall_seconds,
            receipt.read_nbytes,
            receipt.written_nbytes,
            receipt.retries,
            notice=receipt.notice,
        )


def may_pass_elsewhere(error: ArrowQuantError) -> bool:
    """Whether another attempt may succeed: storage was unreachable, or bytes were damaged in transit."""
    cause: Any = error.__cause__
    return isinstance(error, _MAY_PASS) and getattr(cause, "errno", None) not in _STAYS
