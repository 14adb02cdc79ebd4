"""Some rows of each layer, evenly spread over it, in memory: what sizes and errors are measured on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from arrowquant_dist.checkpoint.reader import SourceReader
from arrowquant_dist.checkpoint.table import Layer
from arrowquant_dist.plan import RowBlock

SAMPLE_VALUES = 1 << 25  # of all layers together, about
_MOST_VALUES = 1 << 20  # of one layer
_LEAST_VALUES = 1 << 12
_RUNS = 64  # of rows that lie side by side, in a layer of which not all rows are taken


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """Rows that lie side by side. values: uint8, as the source has them, decoded."""

    row_start: int
    rows: int
    values: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class LayerSample:
    """Some rows of a layer. blocks: all of its row blocks, as they are going to be stored."""

    blocks: tuple[RowBlock, ...]
    runs: tuple[Run, ...]

    @property
    def layer(self) -> Layer:
        return self.blocks[0].layer

    @property
    def columns(self) -> int:
        return self.blocks[0].columns

    @property
    def rows(self) -> int:
        return sum(block.rows for block in self.blocks)

    @property
    def params(self) -> int:
        return self.rows * self.columns

    @property
    def sampled_rows(self) -> int:
        return sum(run.rows for run in self.runs)


def read_samples(layers: Sequence[tuple[RowBlock, ...]], reader: SourceReader) -> Iterator[LayerSample]:
    """Of each layer, given by its row blocks, in order. Raises what reading raises."""
    values = max(_LEAST_VALUES, min(_MOST_VALUES, SAMPLE_VALUES // max(1, len(layers))))
    for blocks in layers:
        columns, layer = blocks[0].columns, blocks[0].layer
        rows = sum(block.rows for block in blocks)
        wanted = [*sampled_runs(rows, max(1, values // max(1, columns)))]
        found = reader.read([(layer, start * columns, stop * columns) for start, stop in wanted])
        runs = (Run(start, stop - start, raw) for (start, stop), raw in zip(wanted, found, strict=True))
        yield LayerSample(blocks, tuple(runs))


def sampled_runs(rows: int, wanted: int) -> Iterable[tuple[int, int]]:
    """[start, stop) of runs with about `wanted` rows in sum, the first row and the last among them; all rows where that
    is not many fewer."""
    if wanted * 5 >= rows * 4:
        return [(0, rows)]
    runs = min(_RUNS, wanted)
    length = wanted // runs
    starts = [(rows - length) * index // max(1, runs - 1) for index in range(runs)]
    return [(start, start + length) for start in starts]
