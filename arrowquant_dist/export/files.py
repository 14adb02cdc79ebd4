"""Files of the output: what a file consists of, byte for byte, and the steps in which a worker makes it.

To an engine, a file is a job and a step is a block of it (worker/job.py). Steps depend on the available memory, and
change no byte of the output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.export.tensors import LayerExport, Needs, OutputTensor

_OPEN_FILES = 4  # files that a piece may still be put into
_UNEVEN = 1 << 10  # differences below this part of a file's size are not worth another try


@dataclass(frozen=True, slots=True)
class Step:
    """Rows [row_start, row_stop) of a layer of the dataset, which are read at once and give `tensors` their next bytes.

    layer_name: name of the layer in the output. number: index of the layer in the file. tensors: indices of the layer's
    tensors. needs: the most that one of these needs. source_nbytes: bytes read. is_first: whether this is the first
    step of the layer. peak_nbytes: memory that reading and packing take.
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
    """One file of weights. index: number of the file. path: path under the output's root.

    layers: in order; their tensors follow each other. literals: the bytes before each tensor of the file (a header or
    padding), and those after the last one. steps: in the order of the bytes; empty until the memory is known
    (steps.py). stored: the dataset's layers that they are made from, as in its index, which a worker that gets them
    need not read; () if there is no index, and until there are steps.
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
    """Returns which pieces go into which file: as few files as possible of at most `most` bytes each, with about equal
    sizes; a larger piece gets a file of its own.

    nbytes: size of each piece, in order, which the files keep, except that a small piece may move ahead into a file
    that has room for it: between two large ones it would otherwise be alone in a file. Equal numbers give equal files,
    no matter who writes them.
    """
    count = len(_filled(nbytes, most))
    mean = sum(nbytes) // max(count, 1)
    low, high = min(most, mean), most
    while high - low > mean // _UNEVEN:  # finds roughly the lowest limit that needs no more files
        limit = (low + high) // 2
        if len(_filled(nbytes, limit)) <= count:
            high = limit
        else:
            low = limit + 1
    return _filled(nbytes, high)


def _filled(nbytes: Sequence[int], most: int) -> list[list[int]]:
    """Puts each piece into the first of the last few files that has room for it, or into a new one."""
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
