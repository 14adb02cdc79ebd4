"""Cuts files into steps that fit into the available memory: whole layers, or runs of rows of larger layers.

A layer in one step is read once, and its tensors are packed together. For a larger layer, each tensor takes a pass of
its own, since a file is written front to back: a tensor that needs only scales reads only these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from arrowquant_dist.dataset.assemble import Assembler
from arrowquant_dist.dataset.dataset import Dataset
from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.dataset.pieces import pieces
from arrowquant_dist.dataset.region import Region
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.export.files import OutputFile, Step
from arrowquant_dist.export.tensors import LayerExport, Needs

RUN_NBYTES = (
    32 << 20
)  # enough to keep a disk or a network busy, and small enough that several runs can be read ahead
_RUNS_HELD = 3  # in a worker's memory: one being written, two being read
_BY_BLOCK_NBYTES = 4 << 20  # shorter steps would cost more than they save


@dataclass(frozen=True, slots=True)
class StepCutter:
    """Cuts files into steps. dataset: open, to tell what reading takes. budget_nbytes: memory of a worker for all that
    it holds at a time."""

    dataset: Dataset
    budget_nbytes: int

    def cut(self, files: tuple[OutputFile, ...]) -> tuple[OutputFile, ...]:
        """Returns the same files with their steps."""
        return tuple(
            replace(file, steps=tuple(self._steps(file)), stored=self._stored(file)) for file in files
        )

    def too_large(self, made: tuple[OutputFile, ...]) -> dict[str, int]:
        """Returns {layer: bytes} for layers with a run of rows in `made`, by `cut`, that takes more than the budget
        even at its shortest."""
        most: dict[str, int] = {}
        for file in made:
            for step in file.steps:
                if step.peak_nbytes > self.budget_nbytes:
                    most[step.layer_name] = max(step.peak_nbytes, most.get(step.layer_name, 0))
        return most

    def _stored(self, file: OutputFile) -> tuple[StoredLayer, ...]:
        if self.dataset.manifest is None:
            return ()
        return tuple(
            self.dataset.layers[name] for name in dict.fromkeys(layer.layer for layer in file.layers)
        )

    def _steps(self, file: OutputFile) -> Iterator[Step]:
        for number, layer in enumerate(file.layers):
            yield from _LayerCut(self.dataset, self.budget_nbytes, layer).steps(number)


class _LayerCut:
    """One layer of a file. What a run of its rows takes is computed only once, and not at all if its packed bytes alone
    are too many: a model of 2 GB has a thousand runs."""

    def __init__(self, dataset: Dataset, budget_nbytes: int, layer: LayerExport) -> None:
        self._dataset, self._budget_nbytes, self._layer = dataset, budget_nbytes, layer
        self._stored = dataset.layers[layer.layer]
        self._every = tuple(range(len(layer.tensors)))
        self._peaks: dict[tuple[tuple[int, ...], int, int], int] = {}

    def steps(self, number: int) -> Iterator[Step]:
        """Yields the steps. number: index of the layer in the file."""
        layer = self._layer
        runs = self._runs()
        if len(runs) == 1:
            yield self._step(number, self._every, runs[0], is_first=True)
            return
        for tensor in self._every:
            for place, rows in enumerate(runs if layer.tensors[tensor].needs != "nothing" else runs[:1]):
                yield self._step(number, (tensor,), rows, is_first=tensor == 0 and place == 0)

    def _step(self, number: int, tensors: tuple[int, ...], rows: tuple[int, int], *, is_first: bool) -> Step:
        needs = most_needed(self._layer, tensors)
        per_row = self._stored.stored_nbytes / max(self._stored.rows, 1) if needs == "rows" else 0
        nbytes, peak_nbytes = round(per_row * (rows[1] - rows[0])), self._peak_nbytes(tensors, *rows)
        return Step(self._layer.name, number, tensors, *rows, needs, nbytes, is_first, peak_nbytes)

    def _takes_at_most(self, limit_nbytes: int, start: int, stop: int) -> bool:
        """Returns whether rows [start, stop) of all tensors fit."""
        packed_nbytes = _packed_nbytes(self._layer, self._every, stop - start)
        return packed_nbytes <= limit_nbytes and self._peak_nbytes(self._every, start, stop) <= limit_nbytes

    def _peak_nbytes(self, tensors: tuple[int, ...], start: int, stop: int) -> int:
        """Returns the memory of one step: what it reads, and what is packed from that."""
        key = tensors, start, stop
        if key not in self._peaks:
            read_nbytes = self._read_nbytes(most_needed(self._layer, tensors), start, stop)
            self._peaks[key] = read_nbytes + _packed_nbytes(self._layer, tensors, stop - start)
        return self._peaks[key]

    def _read_nbytes(self, needs: Needs, start: int, stop: int) -> int:
        if needs == "nothing":
            return 0
        region, assembler = _rows_of(self._stored, start, stop), Assembler(self._dataset, 1, 0, verify=True)
        load = assembler.scales(region) if needs == "scales" else assembler.quantized(region)
        quantizing_nbytes = (stop - start) * _quantizing_nbytes(self._layer)
        return load.peak_nbytes + quantizing_nbytes

    def _runs(self) -> list[tuple[int, int]]:
        """Returns [start, stop) of each run; stored row blocks stay whole if they fit."""
        layer, limit = self._layer, self._run_nbytes()
        whole = layer.row_start, layer.row_stop
        if not layer.has_rows_alone or self._takes_at_most(limit, *whole):
            return [whole]
        runs: list[tuple[int, int]] = []
        start = layer.row_start
        while start < layer.row_stop:
            stop = self._longest(start, limit)
            runs.append((start, stop))
            start = stop
        return runs

    def _run_nbytes(self) -> int:
        """Returns the most bytes that a run of several row blocks may take."""
        nbytes = self._longest_nbytes
        return min(nbytes, _BY_BLOCK_NBYTES) if self._is_best_by_block() else nbytes

    @property
    def _longest_nbytes(self) -> int:
        return min(RUN_NBYTES, self._budget_nbytes // _RUNS_HELD)

    def _is_best_by_block(self) -> bool:
        """Returns whether one row block at a time is best: several in one step are first copied into one array. It is
        not if several tensors are made from the same blocks, if runs would end within blocks, which would be read
        twice, or if reading several blocks at once saves requests."""
        layer = self._layer
        if len(self._every) > 1 or layer.spec is not None or not self._dataset.store.is_near:
            return False
        found = pieces(self._stored, layer.row_start, layer.row_stop)
        return len(found) > 1 and not any(
            (piece.block.header.row_start + piece.stop - layer.row_start) % layer.packer.row_multiple
            for piece in found
        )

    def _longest(self, start: int, limit: int) -> int:
        """Returns where the run from `start` ends: after as many row blocks as fit, or within the first one."""
        layer, multiple = self._layer, self._layer.packer.row_multiple
        found = pieces(self._stored, start, layer.row_stop)
        edges = [piece.block.header.row_start + piece.stop for piece in found]
        fitting = start
        for edge in edges:
            stop = edge if edge == layer.row_stop else _down(edge, layer.row_start, multiple)
            # a row block that is cut may be read again for each of its parts, so the first may use the whole budget
            most = limit if fitting > start else self._budget_nbytes
            if stop > start and self._takes_at_most(most, start, stop):
                fitting = stop
            elif fitting > start:
                return fitting
        if fitting > start:
            return fitting
        limit = self._longest_nbytes
        low, high = 1, max(1, -(-(edges[0] - start) // multiple))
        if not self._takes_at_most(limit // 2, start, min(start + multiple, layer.row_stop)):
            limit = self._budget_nbytes
        while low < high:  # finds the most multiples that fit, but at least one, whatever it takes
            middle = (low + high + 1) // 2
            if self._takes_at_most(limit, start, min(start + middle * multiple, layer.row_stop)):
                low = middle
            else:
                high = middle - 1
        return min(start + low * multiple, layer.row_stop)


def region_of(stored: StoredLayer, step: Step) -> Region:
    """Returns the step's rows, as [rows, columns]."""
    return _rows_of(stored, step.row_start, step.row_stop)


def _rows_of(stored: StoredLayer, start: int, stop: int) -> Region:
    return Region(stored, (range(start, stop),), range(stored.columns), (stop - start, stored.columns))


def most_needed(layer: LayerExport, tensors: tuple[int, ...]) -> Needs:
    """Returns "rows" if one of the tensors needs them or the layer is quantized anew, else "scales" or "nothing"."""
    needs = {layer.tensors[tensor].needs for tensor in tensors}
    if "rows" in needs or (layer.spec is not None and "scales" in needs):
        return "rows"
    return "scales" if "scales" in needs else "nothing"


def step_nbytes(layer: LayerExport, step: Step) -> int:
    """Returns the bytes of the step's rows in its tensors, rounded up."""
    return _packed_nbytes(layer, step.tensors, step.rows)


def _packed_nbytes(layer: LayerExport, tensors: tuple[int, ...], rows_now: int) -> int:
    rows, every = max(layer.rows, 1), layer.tensors
    return sum(-(-every[tensor].nbytes * max(rows_now, 1) // rows) for tensor in tensors)


def _quantizing_nbytes(layer: LayerExport) -> int:
    """Returns the bytes per row for quantizing anew: values in the source's dtype, and their codes and scales, at most
    a byte and a half for each value; 0 if codes are taken as they are."""
    return layer.columns * (DTYPES["float64"].itemsize + 2) if layer.spec is not None else 0


def _down(row: int, first: int, multiple: int) -> int:
    """Returns the last row at or before `row` where a run from `first` may end."""
    return first + (row - first) // multiple * multiple
