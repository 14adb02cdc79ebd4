"""A file in steps that fit into the memory there is: whole layers, or runs of rows of those that are larger.

A layer in one step is read once, and its tensors are packed side by side. Of a larger one each tensor is made in a pass
of its own, since a file is written front to back: a tensor that needs scales alone reads these alone.
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
)  # enough to keep a disk or a network busy, and little enough to be read ahead several times
_RUNS_HELD = 3  # of a worker's memory: one that is written, two that are read
_BY_BLOCK_NBYTES = 4 << 20  # more steps than one for each so many bytes cost more than they save


@dataclass(frozen=True, slots=True)
class StepCutter:
    """dataset: open, for what reading takes. budget_nbytes: a worker's, for all that it holds at a time."""

    dataset: Dataset
    budget_nbytes: int

    def cut(self, files: tuple[OutputFile, ...]) -> tuple[OutputFile, ...]:
        """The same files with their steps."""
        return tuple(
            replace(file, steps=tuple(self._steps(file)), stored=self._stored(file)) for file in files
        )

    def too_large(self, made: tuple[OutputFile, ...]) -> dict[str, int]:
        """Layers that `made` by `cut` has a run of rows of, the shortest that there can be, which takes more than the
        budget, and what it takes."""
        most: dict[str, int] = {}
        for file in made:
            for step in file.steps:
                if step.peak_nbytes > self.budget_nbytes:
                    most[step.layer_name] = max(step.peak_nbytes, most.get(step.layer_name, 0))
        return most

    def peak_nbytes(self, layer: LayerExport, step: Step) -> int:
        """Memory of one step: what it reads, and what is packed of that."""
        return self._read_nbytes(layer, step) + step_nbytes(layer, step)

    def _read_nbytes(self, layer: LayerExport, step: Step) -> int:
        if step.needs == "nothing":
            return 0
        stored = self.dataset.layers[layer.layer]
        region, assembler = region_of(stored, step), Assembler(self.dataset, 1, 0, verify=True)
        load = assembler.scales(region) if step.needs == "scales" else assembler.quantized(region)
        nbytes = load.peak_nbytes
        return nbytes + (_quantizing_nbytes(layer, step) if layer.spec is not None else 0)

    def _stored(self, file: OutputFile) -> tuple[StoredLayer, ...]:
        if self.dataset.manifest is None:
            return ()
        return tuple(
            self.dataset.layers[name] for name in dict.fromkeys(layer.layer for layer in file.layers)
        )

    def _steps(self, file: OutputFile) -> Iterator[Step]:
        for number, layer in enumerate(file.layers):
            every = tuple(range(len(layer.tensors)))
            whole = self._step(layer, number, every, (layer.row_start, layer.row_stop))
            runs = self._runs(layer, whole)
            if len(runs) == 1:
                yield whole
                continue
            for tensor in every:
                for place, rows in enumerate(runs if layer.tensors[tensor].needs != "nothing" else runs[:1]):
                    step = self._step(layer, number, (tensor,), rows)
                    yield replace(step, is_first=tensor == 0 and place == 0)

    def _step(self, layer: LayerExport, number: int, tensors: tuple[int, ...], rows: tuple[int, int]) -> Step:
        needs = most_needed(layer, tensors)
        stored = self.dataset.layers[layer.layer]
        per_row = stored.stored_nbytes / max(stored.rows, 1) if needs == "rows" else 0
        nbytes = round(per_row * (rows[1] - rows[0]))
        step = Step(layer.name, number, tensors, *rows, needs, nbytes, is_first=True)
        return replace(step, peak_nbytes=self.peak_nbytes(layer, step))

    def _runs(self, layer: LayerExport, whole: Step) -> list[tuple[int, int]]:
        """[start, stop) of each; stored row blocks stay whole where they fit."""
        limit = self._run_nbytes(layer)
        if whole.peak_nbytes <= limit or not layer.has_rows_alone:
            return [(layer.row_start, layer.row_stop)]
        runs: list[tuple[int, int]] = []
        start = layer.row_start
        while start < layer.row_stop:
            stop = self._longest(layer, whole, start, limit)
            runs.append((start, stop))
            start = stop
        return runs

    def _run_nbytes(self, layer: LayerExport) -> int:
        """What a run of several row blocks takes at most."""
        nbytes = self._longest_nbytes
        return min(nbytes, _BY_BLOCK_NBYTES) if self._is_best_by_block(layer) else nbytes

    @property
    def _longest_nbytes(self) -> int:
        return min(RUN_NBYTES, self.budget_nbytes // _RUNS_HELD)

    def _is_best_by_block(self, layer: LayerExport) -> bool:
        """Whether it is best made of one row block after another: several in one step are copied into one array first.
        Not where several tensors are made of the same blocks, where such runs end inside of blocks, which would be read
        twice, and where to read several at once saves requests."""
        if len(layer.tensors) > 1 or layer.spec is not None or not self.dataset.store.is_near:
            return False
        found = pieces(self.dataset.layers[layer.layer], layer.row_start, layer.row_stop)
        return len(found) > 1 and not any(
            (piece.block.header.row_start + piece.stop - layer.row_start) % layer.packer.row_multiple
            for piece in found
        )

    def _longest(self, layer: LayerExport, whole: Step, start: int, limit: int) -> int:
        """Where the run from `start` ends: behind as many row blocks as fit, or inside of the first one."""
        multiple = layer.packer.row_multiple
        found = pieces(self.dataset.layers[layer.layer], start, layer.row_stop)
        edges = [piece.block.header.row_start + piece.stop for piece in found]

        def takes(stop: int) -> int:
            return self.peak_nbytes(layer, replace(whole, row_start=start, row_stop=stop))

        fitting = start
        for edge in edges:
            stop = edge if edge == layer.row_stop else _down(edge, layer.row_start, multiple)
            # a row block that is cut may be read again for each of its parts, so the first one has all of the budget
            if stop > start and takes(stop) <= (limit if fitting > start else self.budget_nbytes):
                fitting = stop
            elif fitting > start:
                return fitting
        if fitting > start:
            return fitting
        limit = self._longest_nbytes
        low, high = 1, max(1, -(-(edges[0] - start) // multiple))
        if takes(min(start + multiple, layer.row_stop)) > limit // 2:
            limit = self.budget_nbytes
        while low < high:  # the most multiples that fit; one, whatever it takes
            middle = (low + high + 1) // 2
            if takes(min(start + middle * multiple, layer.row_stop)) <= limit:
                low = middle
            else:
                high = middle - 1
        return min(start + low * multiple, layer.row_stop)


def region_of(stored: StoredLayer, step: Step) -> Region:
    """The step's rows, as [rows, columns]."""
    rows = range(step.row_start, step.row_stop)
    return Region(stored, (rows,), range(stored.columns), (step.rows, stored.columns))


def most_needed(layer: LayerExport, tensors: tuple[int, ...]) -> Needs:
    """Rows, if one of the tensors needs them, or the layer is quantized anew; else scales, or nothing."""
    needs = {layer.tensors[tensor].needs for tensor in tensors}
    if "rows" in needs or (layer.spec is not None and "scales" in needs):
        return "rows"
    return "scales" if "scales" in needs else "nothing"


def step_nbytes(layer: LayerExport, step: Step) -> int:
    """Of the step's tensors, its rows' share, rounded up."""
    rows = max(layer.rows, 1)
    every = layer.tensors
    return sum(-(-every[tensor].nbytes * max(step.rows, 1) // rows) for tensor in step.tensors)


def _quantizing_nbytes(layer: LayerExport, step: Step) -> int:
    """Values in the source's dtype, and codes and scales of these, at most a byte and a half each."""
    values = step.rows * layer.columns
    return values * (DTYPES["float64"].itemsize + 2)


def _down(row: int, first: int, multiple: int) -> int:
    """The last row at or before `row` where a run from `first` may end."""
    return first + (row - first) // multiple * multiple
