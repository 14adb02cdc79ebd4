"""Some rows of each layer, spread over it, in memory, on which sizes and errors are measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from arrowquant_dist.checkpoint.reader import SourceReader
from arrowquant_dist.checkpoint.table import Layer
from arrowquant_dist.config import QuantSpec
from arrowquant_dist.methods.counted import CountedRows
from arrowquant_dist.plan import RowBlock
from arrowquant_dist.sizing.candidates import RowSteps, size_spec

SAMPLE_VALUES = 1 << 24  # about how many values are sampled, of all layers together
_MOST_VALUES = 1 << 20  # of one layer
_LEAST_VALUES = 1 << 15
_RUNS = 64  # number of runs of neighbouring rows, in a layer of which not all rows are taken
_SEED = 20261
# For embeddings with a calibration, which takes longer than looking at these: all rows of most vocabularies.
EMBEDDING_VALUES = 1 << 24


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """Neighbouring rows of a layer. values: uint8, decoded values in the source's dtype."""

    row_start: int
    rows: int
    values: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class LayerSample:
    """Some rows of a layer. blocks: all of its row blocks, as they are going to be stored.

    row_steps: steps of the rows of an embedding, which are read by index; None for other layers. relative_step: the
    layer's step relative to that of other layers, by how much its errors change the model's outputs. side: counts of
    its rows, by which they are quantized under specs of method `size`; None where they are not known.
    """

    blocks: tuple[RowBlock, ...]
    runs: tuple[Run, ...]
    row_steps: RowSteps | None = None
    relative_step: float = 1.0
    side: CountedRows | None = None

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

    def joined(self) -> LayerSample:
        """The same rows as one run, for layers whose rows are quantized alike wherever they are."""
        if len(self.runs) < 2:
            return self
        values = np.concatenate([run.values for run in self.runs])
        return replace(self, runs=(Run(0, self.sampled_rows, values),))

    def fewer(self, values: int) -> LayerSample:
        """About so many values of the sample, with at least one row of each of eight runs or so."""
        wanted = max(1, values // max(1, self.columns))
        if wanted * 2 > self.sampled_rows:
            return self
        runs, row_nbytes = [], self.runs[0].values.size // max(1, self.runs[0].rows)
        for run in self.runs[:: max(1, len(self.runs) // 8)]:
            share = max(1, wanted * len(self.runs) // (len(self.runs) * min(8, len(self.runs))))
            taken = min(run.rows, share) if len(self.runs) > 1 else wanted
            step = max(1, run.rows // taken)
            rows = run.values.reshape(run.rows, row_nbytes)[: taken * step : step]
            runs.append(Run(run.row_start, len(rows), np.ascontiguousarray(rows).reshape(-1)))
        return replace(self, runs=tuple(runs))

    def spec_at(self, quant_type: str, step: float) -> QuantSpec:
        """Spec of method `size`. step: that of other layers."""
        return size_spec(self.blocks[0], quant_type, step * self.relative_step, self.row_steps)


def read_samples(
    layers: Sequence[tuple[RowBlock, ...]],
    reader: SourceReader,
    row_steps: Sequence[RowSteps | None],
    in_runs: Sequence[bool],
    embedding_values: int = 0,
) -> Iterator[LayerSample]:
    """Samples of layers, each given by its row blocks, in order. row_steps: of each layer, as in LayerSample. in_runs:
    whether a layer's rows stay in runs as they lie in it, or are joined. embedding_values: number of values of an
    embedding to look at, where that is more than of other layers. Raises what reading raises."""
    params = sum(block.num_params for blocks in layers for block in blocks)
    for blocks, steps, as_they_lie in zip(layers, row_steps, in_runs, strict=True):
        columns, layer = blocks[0].columns, blocks[0].layer
        rows = sum(block.rows for block in blocks)
        share = SAMPLE_VALUES * rows * columns // max(1, params)
        values = max(_LEAST_VALUES, min(_MOST_VALUES, share), 0 if steps is None else embedding_values)
        wanted = [*sampled_runs(rows, max(1, values // max(1, columns)), in_runs=as_they_lie)]
        found = reader.read([(layer, start * columns, stop * columns) for start, stop in wanted])
        runs = (Run(start, stop - start, raw) for (start, stop), raw in zip(wanted, found, strict=True))
        sample = LayerSample(blocks, tuple(runs), steps)
        yield sample if as_they_lie else sample.joined()


def sampled_runs(rows: int, wanted: int, *, in_runs: bool) -> Iterable[tuple[int, int]]:
    """[start, stop) of runs with about `wanted` rows in all: one at a random place in each of equal parts of the rows,
    with the first and the last row among them. All rows where that is not many fewer, in several runs if `in_runs`.

    Places are random, since an even spacing would always meet the same place of what repeats (heads, experts).

    For MiniLM's embedding, with a ninth of its rows, the predicted size by method `size` is 0.6 to 1.1 % more than it
    takes (0.3 to 0.4 % of all parts), since the first rows, in the finest steps, stand for more rows than they are; all
    else is exact. That margin keeps a size from being exceeded: fewer and longer runs predict 3 to 11 % more, and a
    first run from the middle of its part predicts 1.2 % less, so that the parts are too large.
    """
    runs = max(1, min(_RUNS, wanted, rows))
    bounds = [rows * index // runs for index in range(runs + 1)]
    if wanted * 3 >= rows * 2:
        return [*pairwise(bounds)] if in_runs else [(0, rows)]
    length = max(1, wanted // runs)
    generator = np.random.default_rng(_SEED)
    starts = [int(generator.integers(a, max(a + 1, b - length + 1))) for a, b in pairwise(bounds)]
    starts[0], starts[-1] = 0, rows - length
    return [(start, start + length) for start in starts]
