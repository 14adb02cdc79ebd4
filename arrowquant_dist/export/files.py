"""A file of the output: what it is made of, byte for byte, and the steps in which a worker makes it.

To an engine a file is a job and a step a block of it (worker/job.py). Steps follow from the memory that there is and
change no byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from arrowquant_dist.export.tensors import LayerExport, Needs, OutputTensor


@dataclass(frozen=True, slots=True)
class Step:
    """Rows [row_start, row_stop) of the dataset's layer, read at once, of which `tensors` get their next bytes.

    number: of the export among the file's layers. tensors: indices of its tensors. needs: the most that one of these
    needs. source_nbytes: of what is read. is_first: the first step of this layer.
    """

    layer_name: str
    number: int
    tensors: tuple[int, ...]
    row_start: int
    row_stop: int
    needs: Needs
    source_nbytes: int
    is_first: bool

    @property
    def rows(self) -> int:
        return self.row_stop - self.row_start


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One file of weights. path: under the output's root.

    layers: in their order; their tensors follow each other. literals: the bytes before each tensor of the file, a
    header or an alignment, and those after the last one. steps: in the order of the bytes; none before the memory is
    known (steps.py).
    """

    index: int
    path: str
    layers: tuple[LayerExport, ...]
    literals: tuple[bytes, ...]
    steps: tuple[Step, ...] = ()

    @property
    def blocks(self) -> Sequence[Step]:
        return self.steps

    @property
    def source_nbytes(self) -> int:
        return sum(step.source_nbytes for step in self.steps)

    @property
    def tensors(self) -> Iterator[OutputTensor]:
        return (tensor for layer in self.layers for tensor in layer.tensors)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors) + sum(map(len, self.literals))


def shares_of(nbytes: Sequence[int], most: int) -> list[range]:
    """Runs of neighbours of about equal sums, as few as stay within `most` each; one that is larger is alone.

    nbytes: of each, in their order. The same numbers give the same runs, whoever writes them.
    """
    count = len(_cut(nbytes, most))
    low, high = 1, most
    while low < high:  # the least limit that needs no more runs
        limit = (low + high) // 2
        if len(_cut(nbytes, limit)) <= count:
            high = limit
        else:
            low = limit + 1
    return _cut(nbytes, high)


def _cut(nbytes: Sequence[int], most: int) -> list[range]:
    runs: list[range] = []
    start, total = 0, 0
    for index, size in enumerate(nbytes):
        if index > start and total + size > most:
            runs.append(range(start, index))
            start, total = index, 0
        total += size
    return [*runs, range(start, len(nbytes))] if nbytes else []
