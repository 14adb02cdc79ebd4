"""What the workers of one training do together: each computes the gradients of its own slice of a step's texts, and all
of them take the step with the sum.

A loss and its gradients are sums over texts (losses.py::BatchShares), so a step of many workers equals the step of one,
except for the order in which numbers are added. Every worker gets the same bytes of each sum, and so all of them stay
equal: nothing else has to be sent from one to another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from arrowquant_dist.distillation.lookups import Lookup
from arrowquant_dist.distillation.student import Student
from arrowquant_dist.errors import StorageError

_BUCKET_VALUES = 1 << 23  # number of values sent at a time: a step has hundreds of small tensors

Operation = Literal["sum", "max"]
Reduce = Callable[[torch.Tensor, Operation], None]  # in place, over all workers


class Peers(Protocol):
    """The other workers, as seen by one of them. is_first: whether this worker is the one that saves."""

    @property
    def is_first(self) -> bool: ...

    def total(self, value: float) -> float:
        """The sum of all workers' values."""

    def largest(self, value: float) -> float:
        """The largest of all workers' values."""

    def sum_gradients(self, student: Student) -> None:
        """Replaces each leaf's gradient by the sum over all workers; rows that any worker has looked up count as seen
        by all."""


class Alone:
    """The peers of a single worker."""

    is_first = True

    def total(self, value: float) -> float:
        return value

    def largest(self, value: float) -> float:
        return value

    def sum_gradients(self, _student: Student) -> None:
        """Does nothing: the gradients are complete."""


ALONE = Alone()


class ManyPeers:
    """The peers of one of several workers. number: of this worker. reduce: see torch_reduce."""

    def __init__(self, number: int, reduce: Reduce) -> None:
        self.is_first = number == 0
        self._reduce = reduce

    def total(self, value: float) -> float:
        return self._of_one(value, "sum")

    def largest(self, value: float) -> float:
        return self._of_one(value, "max")

    def sum_gradients(self, student: Student) -> None:
        """See Peers. A leaf stays without gradient only if no worker has one for it, as if there were one worker."""
        dense, by_rows = _leaves(student)
        seen = self._seen(dense, [found.rows() for found in by_rows])
        tensors = []
        for leaf, is_there in zip(dense, next(seen).tolist(), strict=True):
            if is_there:
                leaf.grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
                tensors.append(leaf.grad)
        filled = [(found, found.fill(mask)) for found, mask in zip(by_rows, seen, strict=True)]
        self._sum([*tensors, *(values for _, made in filled for values in made)])
        for found, made in filled:
            found.put(made)

    def _of_one(self, value: float, operation: Operation) -> float:
        tensor = torch.tensor(value, dtype=torch.float64)
        self._reduce(tensor, operation)
        return float(tensor)

    def _seen(self, dense: Sequence[torch.Tensor], rows: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Flags of the leaves, and then of the rows of each lookup, that have gradients at any worker."""
        flags = [torch.tensor([leaf.grad is not None for leaf in dense], dtype=torch.uint8), *rows]
        every = torch.cat(flags)
        self._reduce(every, "max")
        return iter(torch.split(every, [len(each) for each in flags]))

    def _sum(self, tensors: Sequence[torch.Tensor]) -> None:
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            self._reduce(flat, "sum")
            for tensor, values in zip(
                bucket, torch.split(flat, [each.numel() for each in bucket]), strict=True
            ):
                tensor.copy_(values.view(tensor.shape))


@dataclass(slots=True)
class _ByRows:
    """A layer whose rows are looked up. leaves: its leaves with sparse gradients. height: its number of rows. union:
    the rows that any worker has seen."""

    lookup: Lookup
    leaves: Sequence[torch.Tensor]
    height: int
    union: torch.Tensor | None = None

    def rows(self) -> torch.Tensor:
        """uint8 [height]: 1 for rows that this worker has looked up."""
        found = torch.zeros(self.height, dtype=torch.uint8)
        if self.lookup.seen is not None:
            found[self.lookup.seen] = 1
        return found

    def fill(self, mask: torch.Tensor) -> list[torch.Tensor]:
        """This worker's gradients of the rows in `mask`, with zeros where it has none."""
        self.union = mask.nonzero().flatten()
        return [self._filled(leaf, self.union) for leaf in self.leaves] if len(self.union) else []

    def put(self, made: Sequence[torch.Tensor]) -> None:
        if self.union is None or not made:
            return
        self.lookup.seen = self.union
        for leaf, values in zip(self.leaves, made, strict=True):
            leaf.grad = torch.sparse_coo_tensor(
                self.union[None], values, leaf.shape, is_coalesced=True, check_invariants=False
            )

    def _filled(self, leaf: torch.Tensor, union: torch.Tensor) -> torch.Tensor:
        values = torch.zeros(len(union), *leaf.shape[1:])
        if leaf.grad is not None:
            own = leaf.grad.coalesce()
            values[torch.searchsorted(union, own.indices()[0])] = own.values()
        return values


def _leaves(student: Student) -> tuple[list[torch.Tensor], list[_ByRows]]:
    """The leaves with dense gradients, and the layers that are looked up, in the same order at every worker."""
    dense: list[torch.Tensor] = []
    by_rows: list[_ByRows] = []
    for name, codes in student.matrices.items():
        dense += [leaf for part, leaf in codes.leaves.items() if not student.is_by_rows(name, part)]
        found = [leaf for part, leaf in codes.leaves.items() if student.is_by_rows(name, part)]
        if found:
            by_rows.append(_ByRows(student.lookups[name], found, codes.form.rows))
    dense += [vector.leaf for vector in student.vectors.values()]
    return dense, by_rows


def _buckets(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    bucket: list[torch.Tensor] = []
    values = 0
    for tensor in tensors:
        if bucket and values + tensor.numel() > _BUCKET_VALUES:
            yield bucket
            bucket, values = [], 0
        bucket.append(tensor)
        values += tensor.numel()
    if bucket:
        yield bucket


def torch_reduce(tensor: torch.Tensor, operation: Operation) -> None:
    """Reduces `tensor` in place over torch.distributed's group of this process. Raises StorageError where another
    worker is out of reach, after which the training may begin again from its last checkpoint."""
    distributed: Any = torch.distributed
    how = distributed.ReduceOp.SUM if operation == "sum" else distributed.ReduceOp.MAX
    try:
        distributed.all_reduce(tensor, how)
    except RuntimeError as error:
        message = (
            "another worker of the training is gone or out of reach; run the same command again to resume"
        )
        raise StorageError(message) from error
