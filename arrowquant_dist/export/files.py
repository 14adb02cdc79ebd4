"""A file of the output: what it is made of, byte for byte, and the steps in which a worker makes it.

To an engine a file is a job and a step a block of it (worker/job.py). Steps follow from the memory that there is and
change no byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.export.tensors import LayerExport, Needs, OutputTensor

_OPEN_FILES = 4  # that a piece may still go into
_UNEVEN = 1 << 10  # of a file's size, a part that is not worth another try


@dataclass(frozen=True, slots=True)
class Step:
    """Rows [row_start, row_stop) of the dataset's layer, read at once, of which `tensors` get their next bytes.

    number: of the export among the file's layers. tensors: indices of its tensors. needs: the most that one of these
    needs. source_nbytes: of what is read. peak_nbytes: memory that reading and packing them takes. is_first: the first
    step of this layer.
    """

    layer_name: str
    number: int
    tensors: tuple[int, ...]
    row_start: int
    row_stop: int
    needs: Needs
    source_nbytes: int
    is_first: bool
    peak_nbytes: int = 0

    @property
    def rows(self) -> int:
        return self.row_stop - self.row_start


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One file of weights. path: under the output's root.

    layers: in their order; their tensors follow each other. literals: the bytes before each tensor of the file, a
    header or an alignment, and those after the last one. steps: in the order of the bytes; none before the memory is
    known (steps.py). stored: the dataset's layers that they are made of, as its index has them: a worker that gets
    these need not read it. () where there is no index, and before there are steps.
    """

    index: int
    path: str
    layers: tuple[LayerExport, ...]
    literals: tuple[bytes, ...]
    steps: tuple[Step, ...] = ()
    stored: tuple[StoredLayer, ...] = ()

    @property
    def noun(self) -> str:
        return "file"

    @property
    def label(self) -> str:
        return self.path

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


def shares_of(nbytes: Sequence[int], most: int) -> list[list[int]]:
    """Which of so many pieces go together: as few files as stay within `most` each, of about equal sizes; a piece that
    is larger is alone.

    nbytes: of each piece, in their order, which the files keep. A small one may move ahead into a file that has room
    for it: between two large ones it would be a file of its own. The same numbers give the same files, whoever writes
    them.
    """
    count = len(_filled(nbytes, most))
    mean = sum(nbytes) // max(count, 1)
    low, high = min(most, mean), most
    while high - low > mean // _UNEVEN:  # about the least limit that needs no more files
        limit = (low + high) // 2
        if len(_filled(nbytes, limit)) <= count:
            high = limit
        else:
            low = limit + 1
    return _filled(nbytes, high)


def _filled(nbytes: Sequence[int], most: int) -> list[list[int]]:
    """Each piece goes to the first of the last few files that has room for it, or to a new one."""
    files: list[list[int]] = []
    sizes: list[int] = []
    for index, size in enumerate(nbytes):
        for place in range(max(0, len(files) - _OPEN_FILES), len(files)):
            if sizes[place] + size <= most:
                break
        else:
            place = len(files)
            files.append([])
            sizes.append(0)
        files[place].append(index)
        sizes[place] += size
    return files
